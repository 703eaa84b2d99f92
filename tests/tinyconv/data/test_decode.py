"""Decoding in threads: the results in the order of the photos, and each failure as its own."""

import threading

import numpy as np
import pytest
from photo_bytes import noisy_jpeg, put
from tar_bytes import photo

from tinyconv.data import decode
from tinyconv.data.decode import decode_batch, decode_in_order
from tinyconv.data.listing import Found, SourceError
from tinyconv.data.photos import PhotoError, decode_square


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [each for each in threading.enumerate() if each.name.startswith("decode")]


@pytest.fixture
def batches(tmp_path):
    """Five batches of three files; the fourth file of all is damaged."""
    files = []
    for k in range(15):
        content = noisy_jpeg(k)[: 300 if k == 3 else None] if k % 2 else photo(k)
        path = put(tmp_path / f"{k}.img", content)
        files.append(Found(path.name, str(path), 0, len(content), 0))
    return [files[k : k + 3] for k in range(0, 15, 3)]


@pytest.mark.parametrize("threads", [1, 3, None])
def test_threads_give_what_one_gives_in_order(batches, threads):
    expected = [decode_batch(batch, 16) for batch in batches]
    decoded = list(decode_in_order(batches, 16, threads))
    assert [each.reasons for each in decoded] == [each.reasons for each in expected]
    assert [bool(r) for each in decoded for r in each.reasons] == [k == 3 for k in range(15)]
    for one, other in zip(decoded, expected, strict=True):
        assert one.images.tobytes() == other.images.tobytes()
    assert decoded[2].images[1].tobytes() == decode_square(batches[2][1].path, 16).tobytes()


def test_few_batches_are_decoded_ahead_and_leaving_early_ends_the_threads(batches, monkeypatch):
    begun = []
    monkeypatch.setattr(decode, "decode_batch", lambda batch, size: begun.append(batch))
    decoded = decode_in_order(batches * 20, 8, 2)
    next(decoded)
    assert len(begun) <= 1 + 2 * decode.AHEAD
    decoded.close()


def test_photos_inside_an_archive_and_in_memory(tmp_path):
    one, two = photo(10), noisy_jpeg(1)
    path = str(put(tmp_path / "a.tar", b"x" * 77 + one + two))
    found = [Found("2", path, 77 + len(one), len(two), 0), Found("1", path, 77, len(one), 0)]
    decoded = decode_batch(found, 8)
    assert decoded.reasons == ["", ""] and decoded.images[1, 4, 4, 0] == 10
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 6), np.uint8).transpose(1, 2, 0)
    found = Found("x", "", 0, 1, 0, pixels=pixels)
    assert (decode_batch([found], 6).images[0] == pixels).all()
    assert decode_batch([found], 9).images.shape == (1, 9, 9, 3)


def test_a_problem_of_the_disk_is_not_blamed_on_the_photo(tmp_path, batches, monkeypatch):
    gone = Found("x", str(tmp_path / "gone"), 0, 5, 0)
    batches[4][2] = gone
    with pytest.raises(SourceError, match="cannot read '.*gone': No such file"):
        list(decode_in_order(batches, 8, 2))
    with pytest.raises(SourceError, match="has become shorter"):
        decode_batch([batches[0][0]._replace(size=10**6)], 4)

    def no_memory(source, size):
        raise PhotoError("no memory") from MemoryError()

    monkeypatch.setattr(decode, "decode_square", no_memory)
    with pytest.raises(SourceError, match="not enough memory to decode '0.img'"):
        decode_batch(batches[0], 4)


def test_reasons_are_one_printable_line(batches, monkeypatch):
    def odd(source, size):
        raise PhotoError("a\nb\x1b[31m\udce9")

    monkeypatch.setattr(decode, "decode_square", odd)
    assert decode_batch(batches[0][:1], 4).reasons == [r"a\nb\x1b[31m\udce9"]
    found = Found("x", "/nonexistent", 0, 0, 0, "empty file")  # and it is not opened
    assert decode_batch([found], 4).reasons == ["empty file"]

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert decode_batch(batches[0], 4).reasons == ["no permission to read it"] * 3
