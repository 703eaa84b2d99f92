"""Decoding in threads: the results in the order of the photos, and each failure as its own."""

import threading

import numpy as np
import pytest
from photo_bytes import noisy_jpeg, put, refused
from tar_bytes import photo

from tinyconv.data import decode as module
from tinyconv.data.decode import decode, decode_in_order
from tinyconv.data.listing import Found
from tinyconv.data.photos import PhotoError, decode_square


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [each for each in threading.enumerate() if each.name.startswith("decode")]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Fifteen files, decoded three by three; the fourth is damaged."""
    monkeypatch.setattr(module, "BATCH", 3)
    found = []
    for k in range(15):
        content = noisy_jpeg(k)[: 300 if k == 3 else None] if k % 2 else photo(k)
        path = put(tmp_path / f"{k}.img", content)
        found.append(Found(path.name, str(path), 0, len(content), 0))
    return found


@pytest.mark.parametrize("threads", [1, 3, None])
def test_threads_give_what_one_gives_in_order(files, threads):
    expected = [decode(found, 16) for found in files]
    decoded = list(decode_in_order(files, 16, threads))
    assert [reason for _, reason in decoded] == [reason for _, reason in expected]
    assert [bool(reason) for _, reason in decoded] == [k == 3 for k in range(15)]
    assert decoded.pop(3)[0] is expected.pop(3)[0] is None
    np.testing.assert_array_equal([x for x, _ in decoded], [x for x, _ in expected])
    np.testing.assert_array_equal(decoded[6][0], decode_square(files[7].path, 16))


def test_few_batches_are_decoded_ahead_and_leaving_early_ends_the_threads(files, monkeypatch):
    begun = []
    monkeypatch.setattr(module, "decode", lambda found, size: begun.append(found))
    decoded = decode_in_order(files * 20, 8, 2)
    next(decoded)
    assert len(begun) <= 3 * (1 + 2 * module.AHEAD)
    decoded.close()


def test_photos_inside_an_archive_in_memory_and_in_planes(tmp_path):
    one, two = photo(10), noisy_jpeg(1)
    whole = b"x" * 77 + one + two
    path = str(put(tmp_path / "a.tar", whole))
    for archive in (None, whole):
        inside = Found("1", path, 77, len(one), 0, archive=archive)
        image, reason = decode(inside, 8)
        assert reason == "" and image[4, 4, 0] == 10
        after = inside._replace(offset=77 + len(one), size=len(two))
        assert (
            decode(after, 8)[0] == decode(Found("2", path, 77 + len(one), len(two), 0), 8)[0]
        ).all()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 6), np.uint8)
    found = Found("x", str(put(tmp_path / "p", b"12" + pixels.tobytes())), 2, 108, 0, planes=True)
    assert (decode(found, 6)[0] == pixels.transpose(1, 2, 0)).all()
    assert decode(found, 9)[0].shape == (9, 9, 3)


def test_a_problem_of_the_disk_is_not_blamed_on_the_photo(tmp_path, files, monkeypatch):
    files[14] = Found("x", str(tmp_path / "gone"), 0, 5, 0)
    with refused("cannot read '.*gone': No such file"):
        list(decode_in_order(files, 8, 2))
    with refused("has become shorter"):
        decode(files[0]._replace(size=10**6), 4)

    def no_memory(source, size):
        raise PhotoError("no memory") from MemoryError()

    monkeypatch.setattr(module, "decode_square", no_memory)
    with refused("not enough memory to decode '0.img'"):
        decode(files[0], 4)


def test_reasons_are_one_printable_line(files, monkeypatch):
    def odd(source, size):
        raise PhotoError("a\nb\x1b[31m\udce9")

    monkeypatch.setattr(module, "decode_square", odd)
    assert decode(files[0], 4) == (None, r"a\nb\x1b[31m\udce9")
    found = Found("x", "/nonexistent", 0, 0, 0, "empty file")  # and it is not opened
    assert decode(found, 4) == (None, "empty file")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    assert decode(files[0], 4) == (None, "no permission to read it")
