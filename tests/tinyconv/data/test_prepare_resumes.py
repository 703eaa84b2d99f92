"""Killed, interrupted, or with a full disk: the same call resumes to the same bytes."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from photo_bytes import corrupted, put, refused
from preparations import IDS, Bar, left_in, made, small_steps, source, stopping_at
from tar_bytes import photo

from tinyconv.data import prepare as module
from tinyconv.data.listing import SourceError
from tinyconv.data.store import PhotoStore
from tinyconv.data.store_writer import StoreWriter

ROOT = Path(__file__).resolve().parents[3]
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")


__all__ = ["small_steps", "source"]  # fixtures


def interrupted(source, out, place=14):
    with pytest.raises(KeyboardInterrupt):
        made(source, out, progress=stopping_at(place))


def assert_as_if_never_interrupted(source, out, size=8):
    whole = out.parent / "whole" / out.name
    whole.parent.mkdir()
    made(source, whole, size)
    for one, other in ((out, whole), *((p.with_suffix(".skipped.txt") for p in (out, whole)),)):
        assert one.read_bytes() == other.read_bytes()
    assert left_in(out.parent) == []


# --- killed

KILLED = """
import os, random, signal, sys
from tinyconv.data import decode, prepare as module
from tinyconv.data.store_writer import StoreWriter

decode.BATCH, module.SAVE_PHOTOS = 2, 4
real = {name: getattr(os, name) for name in ("fsync", "truncate", "replace", "unlink")}

def kill_after(calls):
    # SIGKILL before one of the calls that reach the disk, or in the middle of a write. Without
    # waiting for the disk: what the system holds outlives the process.
    def count():
        nonlocal calls
        calls -= 1
        return not calls
    def wrapped(call):
        def counted(*arguments, **named):
            if count():
                os.kill(os.getpid(), signal.SIGKILL)
            if call is not real["fsync"]:
                return call(*arguments, **named)
        return counted
    def write(writer, offset, content, real=StoreWriter._write):
        if count():
            real(writer, offset, content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        real(writer, offset, content)
    StoreWriter._write = write
    for name, call in real.items():
        setattr(os, name, wrapped(call))

source, out, seed = sys.argv[1:]
moments, kills, status = random.Random(int(seed)), 0, signal.SIGKILL
while status == signal.SIGKILL:
    moment = moments.randint(2, 45)
    child = os.fork()  # nothing has started a thread yet; importing again would take a second
    if not child:
        kill_after(moment)
        lines = []
        module.prepare(source, out, size=8, workers=2, report=lines.append)
        os._exit(any("again" in line for line in lines))
    status = os.waitpid(child, 0)[1]
    kills += status == signal.SIGKILL
    assert kills < 500
print(kills, status)
"""


def pytest_generate_tests(metafunc):
    """Five runs with random moments, and more with --kills."""
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(5 + metafunc.config.getoption("--kills")))


@pytest.mark.full
@posix
def test_killed_at_any_moment_it_resumes_to_the_same_bytes(source, tmp_path, seed):
    out = tmp_path / "killed" / "out.h5"
    out.parent.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, source, out, str(seed)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stderr == ""
    kills, status = map(int, done.stdout.split())
    assert status == 0 and kills >= 1
    assert_as_if_never_interrupted(source, out)


@posix
def test_rows_are_on_disk_before_the_progress_counts_them(source, tmp_path, monkeypatch):
    calls = []

    def noted(name, real):
        def call(*arguments, **named):
            calls.append(name)
            return real(*arguments, **named)

        return call

    monkeypatch.setattr(StoreWriter, "_write", noted("rows", StoreWriter._write))
    monkeypatch.setattr(StoreWriter, "sync", noted("sync", StoreWriter.sync))
    monkeypatch.setattr(module, "save_progress", noted("save", module.save_progress))
    monkeypatch.setattr(os, "fsync", noted("fsync", os.fsync))
    monkeypatch.setattr(os, "replace", noted("replace", os.replace))
    made(source, tmp_path / "out.h5")
    saves = [place for place, name in enumerate(calls) if name == "save"]
    assert len(saves) == 6  # of 4 of 23 photos each
    for place in saves:
        assert calls[place - 2 : place + 3] == ["sync", "fsync", "save", "fsync", "replace"]
    # The complete file, the list of what was left out, the new name.
    assert calls[-5:] == ["sync", "fsync", "fsync", "replace", "replace"]


# --- interrupted


def test_interrupted_it_says_where_it_resumes(source, tmp_path):
    out = tmp_path / "out.h5"
    interrupted(source, out)
    assert left_in(tmp_path) == [".out.h5.part", ".out.h5.progress"] and not out.exists()
    lines, (_, resumed) = made(source, out)
    assert "resuming after 12 of 23 photos" in lines and resumed == 12
    assert_as_if_never_interrupted(source, out)


def test_before_anything_is_saved_nothing_is_left(source, tmp_path):
    interrupted(source, tmp_path / "out.h5", place=2)
    assert left_in(tmp_path) == []


def test_progress_is_saved_after_some_seconds(source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAVE_PHOTOS", 1000)
    monkeypatch.setattr(module, "SAVE_SECONDS", 0)
    interrupted(source, tmp_path / "out.h5", place=6)
    lines, _ = made(source, tmp_path / "out.h5")
    assert "resuming after 5 of 23 photos" in lines


@pytest.mark.parametrize("change", ["photo", "size", "class"])
def test_another_source_or_option_starts_again(source, tmp_path, change):
    out = tmp_path / "out.h5"
    interrupted(source, out)
    if change == "photo":
        put(source / "train" / IDS[0] / "train_0.PNG", photo(250))
    if change == "class":
        put(tmp_path / "synset_words.txt", f"{IDS[0]} tench\n".encode())
    size = 9 if change == "size" else 8
    lines, _ = made(source, out, size)
    assert any("have changed: starting again" in x for x in lines)
    assert_as_if_never_interrupted(source, out, size)


@pytest.mark.parametrize("damage", ["gone", "truncated", "other bytes"])
def test_a_damaged_unfinished_file(source, tmp_path, damage):
    out, part = tmp_path / "out.h5", tmp_path / ".out.h5.part"
    interrupted(source, out)
    if damage == "gone":
        part.unlink()
    elif damage == "truncated":
        os.truncate(part, 1000)
    else:  # everything but the rows is written again
        data = bytearray(part.read_bytes())
        data[: len(data) // 2] = Random(0).randbytes(len(data) // 2)
        part.write_bytes(data)
    lines, _ = made(source, out)
    again = "the unfinished file is missing or damaged: starting again" in lines
    assert again == (damage != "other bytes")
    assert_as_if_never_interrupted(source, out)


def test_a_damaged_progress_file_starts_again(source, tmp_path):
    out, saved = tmp_path / "out.h5", tmp_path / ".out.h5.progress"
    interrupted(source, out)
    part, whole = (tmp_path / ".out.h5.part").read_bytes(), saved.read_bytes()
    for data in (whole[:-1], whole[:9], whole[:4], b"", *corrupted(whole, 8, changes=1)):
        saved.write_bytes(data)
        put(tmp_path / ".out.h5.part", part)
        lines, (_, resumed) = made(source, out)
        assert resumed == 0 and not any("resuming" in line for line in lines)
        out.unlink()
    made(source, out)
    assert_as_if_never_interrupted(source, out)


@posix
def test_two_at_once(source, tmp_path):
    class Second(Bar):
        def moved(self):
            with refused("another preparation is writing the same file"):
                made(source, tmp_path / "out.h5")

    made(source, tmp_path / "out.h5", progress=Second)
    assert_as_if_never_interrupted(source, tmp_path / "out.h5")


# --- a full disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_disk_that_fills_up(source, tmp_path, monkeypatch, number):
    out, random, real = put(tmp_path / "out.h5", b"an older one"), Random(number), os.fsync
    failures, lines = 0, []

    def full(descriptor):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(number, os.strerror(number))
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    while not lines:
        left = random.randint(0, 9)
        try:
            lines, _ = made(source, out, force=True)
        except SourceError as error:
            assert re.fullmatch(r"the disk is full \(.*out.h5'.*, which resumes", str(error))
            assert out.read_bytes() == b"an older one"
            failures += 1
    monkeypatch.setattr(os, "fsync", real)
    assert failures > 3 and any(line.startswith("resuming after") for line in lines)
    assert_as_if_never_interrupted(source, out)


@posix
@pytest.mark.parametrize("limit", [300, 3000, 140_000])
def test_a_limit_on_the_size_of_files(source, tmp_path, limit, capfd):
    """The system's limit: HDF5, which reports it in many lines, must not run into it."""
    import resource

    out = put(tmp_path / "out.h5", b"an older one")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with refused("the disk is full .File too large.*out.h5"):
            made(source, out, 32, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.read_bytes() == b"an older one" and capfd.readouterr() == ("", "")
    assert left_in(tmp_path) == []
    made(source, out, 32, force=True)
    assert PhotoStore(out).size == 32


def test_photos_that_do_not_fit_on_the_disk_are_refused_at_once(source, tmp_path, monkeypatch):
    free = module.shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: free)
    with refused("needs 0.00 GB and the disk has 0.00 GB: make room"):
        made(source, tmp_path / "out.h5")
    assert left_in(tmp_path) == []
