"""Endings of every kind: killed, interrupted, a full disk; the same call goes on from there."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from photo_bytes import noisy_jpeg, put
from preparations import IDS, Bar, left_in, made, photos_to_prepare, stopping_at
from tar_bytes import photo

from tinyconv.data import prepare_work
from tinyconv.data.listing import PrepareError
from tinyconv.data.prepare import prepare
from tinyconv.data.store import PhotoStore

ROOT = Path(__file__).resolve().parents[3]
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")


@pytest.fixture
def source(tmp_path):
    return photos_to_prepare(tmp_path / "photos")


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(prepare_work, "BATCH", 2)
    monkeypatch.setattr(prepare_work, "BLOCK", 4)
    monkeypatch.setattr(prepare_work, "BLOCK_SECONDS", 1e9)  # on a busy machine workers start late


# --- endings

KILLED = """
import os, random, signal, sys
from tinyconv.data import prepare_work
from tinyconv.data.prepare import prepare

prepare_work.BATCH, prepare_work.BLOCK = 2, 4

def count_down(left):
    # SIGKILL at one of the calls that reach the disk, in the middle of it where it writes. Nobody
    # waits for the disk: what the system holds outlives the process.
    def wrapped(real, writes):
        if real.__name__ in ("fsync", "fdatasync"):
            real = lambda descriptor: None
        def call(*arguments, **named):
            left[0] -= 1
            if left[0] == 0:
                if writes:
                    content = memoryview(arguments[1]).cast("B")
                    real(arguments[0], content[: len(content) // 2], *arguments[2:])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)
        return call
    for name in ("pwrite", "write", "fsync", "fdatasync", "ftruncate", "replace", "unlink"):
        setattr(os, name, wrapped(getattr(os, name), "write" in name))

def start(left, source, out):
    child = os.fork()  # nothing has started a thread yet; importing anew would take a second
    if not child:
        lines = []
        try:
            count_down(left)
            prepare(source, out, size=8, workers=0, report=lines.append)
            os._exit(1 if any("afresh" in line for line in lines) else 0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(3)
    return os.waitpid(child, 0)[1]

for line in sys.stdin:
    source, out, seed = line.rstrip().split("\\t")
    moments, kills = random.Random(int(seed)), 0
    while (status := start([moments.randint(2, 25)], source, out)) == signal.SIGKILL:
        kills += 1
        assert kills < 500
    print(kills, status, flush=True)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A function: prepare `source` to `out`, killed again and again; (kills, last status)."""
    log = tmp_path_factory.mktemp("killed") / "stderr"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", KILLED],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):

        def run(source, out, seed):
            process.stdin.write(f"{source}\t{out}\t{seed}\n")
            process.stdin.flush()
            said = process.stdout.readline()
            assert log.read_text() == ""
            return tuple(map(int, said.split()))

        yield run


@posix
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(source, tmp_path, killed, seed):
    made(source, tmp_path / "whole.h5")
    (tmp_path / "killed").mkdir()
    out = tmp_path / "killed" / "out.h5"
    kills, status = killed(source, out, seed)
    assert status == 0 and kills >= 3
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    skipped = [tmp_path / "whole.skipped.txt", tmp_path / "killed/out.skipped.txt"]
    assert skipped[0].read_bytes() == skipped[1].read_bytes()
    assert left_in(out.parent) == []


@posix
def test_rows_are_on_disk_before_the_journal_speaks_of_them(source, tmp_path, monkeypatch):
    calls = []

    def noted(name):
        real = getattr(os, name)

        def call(*arguments, **named):
            calls.append(name)
            return real(*arguments, **named)

        return call

    for name in ("pwrite", "fdatasync", "fsync", "write", "replace"):
        if hasattr(os, name):  # fdatasync is not everywhere
            monkeypatch.setattr(os, name, noted(name))
    made(source, tmp_path / "out.h5")
    lines = [place for place, name in enumerate(calls) if name == "write"]
    assert len(lines) == 1 + 6 + 1  # the header, blocks of 4 of 23 photos, the end
    for place in lines:
        before = [name for name in calls[:place] if name in ("pwrite", "fdatasync", "fsync")]
        assert before[-1] != "pwrite" and calls[place + 1] == "fsync"
    last = calls[-calls[::-1].index("write") - 1 :]
    assert last == ["write", "fsync", "replace", "fsync"]


def test_interrupted_it_says_where_it_goes_on(source, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        made(source, tmp_path / "out.h5", progress=stopping_at(14))
    assert left_in(tmp_path) == [".out.h5.journal", ".out.h5.part"]
    assert not (tmp_path / "out.h5").exists()
    lines, result = made(source, tmp_path / "out.h5")
    assert "going on after 12 of 23 photos" in lines and result.resumed == 12
    made(source, tmp_path / "whole.h5")
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_what_takes_long_is_kept_before_a_block_is_full(source, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_work, "BLOCK", 1000)
    monkeypatch.setattr(prepare_work, "BLOCK_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        made(source, tmp_path / "out.h5", progress=stopping_at(6))
    lines, _ = made(source, tmp_path / "out.h5")
    assert "going on after 4 of 23 photos" in lines


def test_interrupted_with_workers_none_is_left_behind(source, tmp_path):
    import multiprocessing

    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out.h5", size=8, workers=2, progress=stopping_at(6))
    assert not multiprocessing.active_children()
    lines, _ = made(source, tmp_path / "out.h5")  # and fewer workers go on
    assert "going on after 4 of 23 photos" in lines


@pytest.mark.parametrize("change", ["photo", "size", "class"])
def test_another_source_or_setting_starts_afresh(source, tmp_path, change):
    out = tmp_path / "out.h5"
    with pytest.raises(KeyboardInterrupt):
        made(source, out, progress=stopping_at(14))
    if change == "photo":
        put(source / "train" / IDS[0] / "train_0.PNG", photo(250))
    if change == "class":
        put(tmp_path / "synset_words.txt", f"{IDS[0]} tench\n".encode())
    lines = []
    size = 9 if change == "size" else 8
    prepare(source, out, size=size, workers=0, report=lines.append)
    assert any("have changed since the unfinished preparation: starting afresh" in x for x in lines)
    prepare(source, tmp_path / "new.h5", size=size, workers=0)
    assert out.read_bytes() == (tmp_path / "new.h5").read_bytes()


@pytest.mark.parametrize("damage", ["gone", "cut", "another"])
def test_a_damaged_unfinished_file_starts_afresh(source, tmp_path, damage):
    out, part = tmp_path / "out.h5", tmp_path / ".out.h5.part"
    with pytest.raises(KeyboardInterrupt):
        made(source, out, progress=stopping_at(14))
    if damage == "gone":
        part.unlink()
    elif damage == "cut":
        os.truncate(part, 1000)
    else:
        prepare(source, tmp_path / "x.h5", size=5, workers=0)
        os.replace(tmp_path / "x.h5", part)
    lines, _ = made(source, out)
    assert "the unfinished file is missing or damaged: starting afresh" in lines
    made(source, tmp_path / "whole.h5")
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()


@posix
def test_two_at_once(source, tmp_path):
    class Second(Bar):
        def moved(self):
            with pytest.raises(PrepareError, match="another preparation is writing the same file"):
                made(source, tmp_path / "out.h5")

    made(source, tmp_path / "out.h5", progress=Second)
    assert PhotoStore(tmp_path / "out.h5") and left_in(tmp_path) == []


@posix
def test_a_killed_worker_ends_it_and_it_goes_on(source, tmp_path):
    import multiprocessing

    class Kill(Bar):
        def moved(self):
            for child in multiprocessing.active_children()[:1]:
                os.kill(child.pid, signal.SIGKILL)

    for k in range(40):
        put(source / "train" / IDS[1] / f"more{k}.jpg", noisy_jpeg(k))
    with pytest.raises(PrepareError, match="a worker process was killed"):
        prepare(source, tmp_path / "out.h5", size=8, workers=1, progress=Kill)
    assert not (tmp_path / "out.h5").exists()
    made(source, tmp_path / "out.h5")
    made(source, tmp_path / "whole.h5")
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


# --- a full disk


def test_a_disk_that_fills_up(source, tmp_path, monkeypatch):
    out = put(tmp_path / "out.h5", b"an older one")
    random, real = Random(0), os.pwrite
    whole = tmp_path / "whole.h5"
    made(source, whole)
    for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        left = random.randint(2, 8)

        def full(descriptor, content, offset, number=number):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(number, os.strerror(number))
            return real(descriptor, content, offset)

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(PrepareError, match="the disk is full.*goes on where it was") as error:
            made(source, out, force=True)
        assert "\n" not in str(error.value) and out.read_bytes() == b"an older one"
    monkeypatch.undo()
    lines, _ = made(source, out, force=True)
    assert any(line.startswith("going on after") for line in lines)
    assert out.read_bytes() == whole.read_bytes()


@posix
def test_a_limit_on_the_size_of_files(source, tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(PrepareError) as error:
            made(source, tmp_path / "out.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value) and "out.h5" in str(error.value)
    assert left_in(tmp_path) == []
    made(source, tmp_path / "out.h5")


def test_what_does_not_fit_is_refused_at_once(source, tmp_path, monkeypatch):
    free = prepare_work.shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(prepare_work.shutil, "disk_usage", lambda _: free)
    with pytest.raises(PrepareError, match="needs 0.00 GB and the disk has 0.00 GB: make room"):
        made(source, tmp_path / "out.h5")
    assert left_in(tmp_path) == []
