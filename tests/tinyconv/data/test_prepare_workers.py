"""Decoding in other processes: the same results in the same order, and no waiting for the dead."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from photo_bytes import noisy_jpeg, put
from tar_bytes import photo

from tinyconv.data import prepare_workers
from tinyconv.data.listing import Found, PrepareError
from tinyconv.data.photos import decode_square
from tinyconv.data.prepare_workers import (
    Decoder,
    decode_here,
    decode_in_processes,
    decode_raw,
)

ROOT = Path(__file__).resolve().parents[3]
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


@pytest.fixture
def batches(tmp_path):
    """Five batches of three files; the fourth file of all is damaged."""
    files = []
    for k in range(15):
        content = noisy_jpeg(k)[: 300 if k == 3 else None] if k % 2 else photo(k)
        path = put(tmp_path / f"{k}.img", content)
        files.append(Found(path.name, str(path), 0, len(content), 0))
    return [files[k : k + 3] for k in range(0, 15, 3)]


def test_processes_give_what_this_one_gives_in_order(batches):
    here = list(decode_here(batches, 16))
    there = list(decode_in_processes(batches, 16, 2))
    assert [each.reasons for each in there] == [each.reasons for each in here]
    assert [bool(reason) for each in here for reason in each.reasons] == [k == 3 for k in range(15)]
    for one, other in zip(here, there, strict=True):
        assert one.images.tobytes() == other.images.tobytes()
    assert here[2].images[1].tobytes() == decode_square(batches[2][1].path, 16).tobytes()
    assert not multiprocessing.active_children()


def test_photos_inside_an_archive(tmp_path):
    one, two = photo(10), noisy_jpeg(1)
    path = str(put(tmp_path / "a.tar", b"x" * 77 + one + two))
    found = [Found("2", path, 77 + len(one), len(two), 0), Found("1", path, 77, len(one), 0)]
    (decoded,) = decode_here([found], 8)
    assert decoded.reasons == ["", ""] and decoded.images[1, 4, 4, 0] == 10


def test_trouble_is_the_reason_and_nothing_is_opened():
    found = Found("x", "/nonexistent", 0, 0, 0, "empty file")
    assert Decoder(4).batch([found]).reasons == ["empty file"]


def test_what_is_wrong_with_the_disk_is_not_blamed_on_the_photo(tmp_path, batches, monkeypatch):
    decoder = Decoder(4)
    gone = Found("x", str(tmp_path / "gone"), 0, 5, 0)
    with pytest.raises(PrepareError, match="cannot read '.*gone': No such file.*goes on"):
        decoder.batch([gone])
    short = batches[0][0]._replace(size=10**6)
    with pytest.raises(PrepareError, match="has become shorter since it was listed"):
        decoder.batch([short])

    def no_memory(source, size):
        raise prepare_workers.PhotoError("no memory") from MemoryError()

    monkeypatch.setattr(prepare_workers, "decode_square", no_memory)
    with pytest.raises(PrepareError, match="not enough memory to decode '0.img'"):
        decoder.batch(batches[0])


def test_a_file_without_permission_is_left_out(batches, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert Decoder(4).batch(batches[0]).reasons == ["no permission to read it"] * 3


def test_a_process_that_cannot_read_says_so(batches):
    batches[4][2] = Found("x", "/nonexistent/file", 0, 5, 0)
    decoded = decode_in_processes(batches, 8, 1)
    with pytest.raises(PrepareError, match="cannot read '/nonexistent/file'"):
        list(decoded)
    assert not multiprocessing.active_children()


@posix
@pytest.mark.parametrize("when", [0, 2])
def test_a_killed_process_is_noticed(batches, when):
    decoded = decode_in_processes(batches * 20, 64, 2)
    for _ in range(when + 1):
        next(decoded)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(PrepareError, match=r"killed \(signal 9\); if memory was short.*goes on"):
        list(decoded)
    assert not multiprocessing.active_children()


ORPHANS = """
import sys
from tinyconv.data.listing import Found
from tinyconv.data.prepare_workers import decode_in_processes

if __name__ == "__main__":
    found = Found("x", sys.argv[1], 0, int(sys.argv[2]), 0)
    for decoded in decode_in_processes([[found]] * 100_000, 8, 2):
        print("working", flush=True)
"""


@posix
def test_workers_of_a_killed_program_end(tmp_path):
    path = put(tmp_path / "x.png", photo(1))
    script = put(tmp_path / "orphans.py", ORPHANS.encode())
    program = subprocess.Popen(
        [sys.executable, script, path, str(path.stat().st_size)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert program.stdout.readline() == b"working\n"
    program.kill()
    # The workers hold the same pipe: its end comes when the last of them is gone.
    program.communicate(timeout=120)


def test_leaving_early_ends_the_processes(batches):
    decoded = decode_in_processes(batches, 8, 1)
    next(decoded)
    assert len(multiprocessing.active_children()) == 1
    decoded.close()
    assert not multiprocessing.active_children()


def test_raw_pixels_are_cut_and_brought_to_the_size():
    raw = np.random.default_rng(0).integers(0, 256, (7, 6, 6, 3), np.uint8)
    same = list(decode_raw(raw, [(2, 5), (5, 7)], 6))
    assert same[0].images.tobytes() == raw[2:5].tobytes() and same[1].reasons == ["", ""]
    (large,) = decode_raw(np.full((2, 6, 6, 3), 77, np.uint8), [(0, 2)], 9)
    assert large.images.shape == (2, 9, 9, 3) and (large.images == 77).all()


def test_reasons_are_one_printable_line(batches, monkeypatch):
    def odd(source, size):
        raise prepare_workers.PhotoError("a\nb\x1b[31m\udce9")

    monkeypatch.setattr(prepare_workers, "decode_square", odd)
    assert Decoder(4).batch(batches[0][:1]).reasons == ["a?b?[31m?"]
