"""The journal: what can be believed of it after any ending."""

import sys

import pytest
from photo_bytes import put

from tinyconv.data.listing import PrepareError
from tinyconv.data.prepare_journal import Journal

HEADER = {"listing": "0" * 64, "photos": 10, "settings": {"size": 4}}
BLOCKS = [(4, [(1, "empty file")]), (7, []), (10, [(7, "ä\n\udce9"), (9, "not a photo")])]


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".out.h5.journal"


def written(path, blocks=BLOCKS, finished=True):
    with Journal.open(path) as journal:
        journal.begin(HEADER)
        for block in blocks:
            journal.add(*block)
        if finished:
            journal.finish()
    return path.read_bytes()


def state(path):
    with Journal.open(path) as journal:
        return journal.header, journal.done, journal.skipped, journal.finished


def test_reads_what_it_wrote(path):
    written(path)
    assert state(path) == (HEADER, 10, BLOCKS[0][1] + BLOCKS[2][1], True)


def test_cut_off_anywhere_the_whole_lines_count(path):
    whole = written(path)
    ends = [n + 1 for n, byte in enumerate(whole) if byte == 10]
    states = [(None, 0, [], False), (HEADER, 0, [], False), (HEADER, 4, [(1, "empty file")], False)]
    for length in range(ends[2]):
        path.write_bytes(whole[:length])
        assert state(path) == states[sum(end <= length for end in ends)], length
        if length >= ends[0]:  # the torn line is gone, so the next one begins a line
            with Journal.open(path) as journal:
                at = journal.done
                journal.add(at + 1, [])
            assert state(path)[1] == at + 1


@pytest.mark.parametrize(
    "line",
    [
        b"rubbish",
        b"\xff\xfe",
        b"[]",
        b"7",
        b'{"done": 4, "rows": 3, "skipped": []}',  # not further than the line before
        b'{"done": 11, "rows": 10, "skipped": []}',  # further than there are photos
        b'{"done": 6, "rows": 4, "skipped": []}',  # does not add up
        b'{"done": 6, "rows": 4, "skipped": [[3, "x"]]}',  # was done before
        b'{"done": 6, "rows": 4, "skipped": [[6, "x"]]}',  # was not done
        b'{"done": 6, "rows": 3, "skipped": [[5, "x"], [4, "x"]]}',
        b'{"done": "6", "rows": 5, "skipped": []}',
        b'{"done": 6}',
        b'{"done": 6, "rows": 5, "skipped": [], "more": 1}',
        b'{"finished": true}',
        b"[" * 100_000,
    ],
)
def test_from_a_line_that_makes_no_sense_on_nothing_counts(path, line):
    good = written(path, BLOCKS[:1], finished=False)
    path.write_bytes(good + line + b"\n" + b'{"done": 10, "rows": 9, "skipped": []}\n')
    assert state(path)[1:] == (4, [(1, "empty file")], False)
    assert path.read_bytes() == good


@pytest.mark.parametrize("start", [b"", b"text\n", b'{"tinyconv prepare": 2, "photos": 1}\n'])
def test_a_file_that_is_no_journal_is_begun_anew(path, start):
    put(path, start)
    with Journal.open(path) as journal:
        assert journal.header is None
        journal.forget()
        journal.begin(HEADER)
    assert state(path)[0] == HEADER


def test_a_journal_in_which_nothing_was_begun_is_removed(path):
    with Journal.open(path):
        assert path.exists()
    assert not path.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_only_one_can_have_it(path):
    with Journal.open(path) as journal:
        journal.begin(HEADER)
        with pytest.raises(PrepareError, match="another preparation"):
            Journal.open(path)
    assert state(path)[0] == HEADER


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_a_journal_removed_while_it_was_opened_is_made_anew(path, monkeypatch):
    import fcntl

    from tinyconv.data import prepare_journal

    class Slow:
        """Another preparation finishes between the opening and the lock."""

        LOCK_EX, LOCK_NB = fcntl.LOCK_EX, fcntl.LOCK_NB
        removed = False

        def flock(self, descriptor, how):
            if not self.removed:
                path.unlink()
                self.removed = True
            fcntl.flock(descriptor, how)

    monkeypatch.setattr(prepare_journal, "fcntl", Slow())
    with Journal.open(path) as journal:
        journal.begin(HEADER)
    assert state(path)[0] == HEADER
