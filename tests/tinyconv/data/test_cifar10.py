"""CIFAR-10's binary files, made in miniature."""

import gzip
from random import Random

import numpy as np
import pytest
from photo_bytes import put
from tar_bytes import tar_of

from tinyconv.data.cifar10 import BATCHES, FOLDER, NAMES, list_cifar10
from tinyconv.data.listing import SourceError

CLASSES = b"airplane\nautomobile\nbird\n\n"


def batch(seed: int, labels: list[int]) -> tuple[bytes, np.ndarray]:
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
    planes = images.transpose(0, 3, 1, 2).reshape(len(labels), -1)
    return b"".join(bytes([n]) + p.tobytes() for n, p in zip(labels, planes, strict=True)), images


def files() -> tuple[dict[str, bytes], np.ndarray]:
    content, images = {NAMES: CLASSES}, []
    for seed, name in enumerate(BATCHES):
        content[name], pixels = batch(seed, [seed % 3, 2])
        images.append(pixels)
    return content, np.concatenate(images)


@pytest.fixture(params=["folder", "folder above", "packed", "tar"])
def source(request, tmp_path):
    content = {f"{FOLDER}/{name}": data for name, data in files()[0].items()}
    if request.param == "packed":
        return put(tmp_path / "cifar-10-binary.tar.gz", gzip.compress(tar_of(content)))
    if request.param == "tar":
        return put(tmp_path / "cifar.tar", tar_of(content))
    for name, data in content.items():
        put(tmp_path / name, data)
    return tmp_path if request.param == "folder above" else tmp_path / FOLDER


def test_planes_become_channels_last(source):
    listing = list_cifar10(source)
    assert listing.class_ids == ("airplane", "automobile", "bird") and listing.size == 32
    pixels = np.stack([photo.found.pixels for photo in listing.photos])
    np.testing.assert_array_equal(pixels, files()[1])
    assert listing.counts() == {"train": 10, "val": 2}
    assert [photo.label for photo in listing.photos] == [0, 2, 1, 2, 2, 2, 0, 2, 1, 2, 2, 2]
    assert listing.photos[-1].found.name == "test_batch.bin 1"


def test_one_pixel_changes_the_digest(tmp_path):
    content, _ = files()
    digests = set()
    for change in (0, 1):
        content["test_batch.bin"] = content["test_batch.bin"][:-1] + bytes([change])
        for name, data in content.items():
            put(tmp_path / name, data)
        digests.add(list_cifar10(tmp_path).digest())
    assert len(digests) == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data_batch_3.bin": None}, "lacks data_batch_3.bin"),
        ({NAMES: None}, "lacks batches.meta.txt"),
        ({"data_batch_2.bin": bytes(3072)}, "data_batch_2.bin has 3,072 bytes, .* truncated"),
        ({"test_batch.bin": b""}, "test_batch.bin has 0 bytes"),
        ({"test_batch.bin": b"\x03" + bytes(3072)}, "a label 3, and batches.meta.txt has 3 names"),
    ],
)
def test_damage(tmp_path, changes, message):
    for name, data in (files()[0] | changes).items():
        if data is not None:
            put(tmp_path / name, data)
    with pytest.raises(SourceError, match=message):
        list_cifar10(tmp_path)


def test_the_python_version_is_refused_by_name(tmp_path):
    inside = {"cifar-10-batches-py/data_batch_1": b"pickled"}
    packed = put(tmp_path / "cifar-10-python.tar.gz", gzip.compress(tar_of(inside)))
    put(tmp_path / "unpacked/cifar-10-batches-py/data_batch_1", b"pickled")
    put(tmp_path / "inside/data_batch_1", b"pickled")
    put(tmp_path / "inside/batches.meta", b"pickled")
    for source in (packed, tmp_path / "unpacked", tmp_path / "inside"):
        with pytest.raises(SourceError, match="give the binary version, cifar-10-binary.tar.gz"):
            list_cifar10(source)


def test_other_sources_are_left_to_others(tmp_path):
    put(tmp_path / "train/cat/x.png", b"x")
    photos = put(tmp_path / "photos.tar.gz", gzip.compress(tar_of({"train/cat/x.png": b"x"})))
    damaged = put(tmp_path / "half.gz", gzip.compress(b"x" * 99)[:12])
    for source in (tmp_path, photos, damaged, put(tmp_path / "x.txt", b"")):
        assert list_cifar10(source) is None


def test_a_truncated_archive(tmp_path):
    content = {f"{FOLDER}/{name}": data for name, data in files()[0].items()}
    whole = gzip.compress(tar_of(content))
    with pytest.raises(SourceError, match="truncated"):
        list_cifar10(put(tmp_path / "c.tar.gz", whole[:-50]))
    with pytest.raises(SourceError, match="truncated"):
        list_cifar10(put(tmp_path / "d.tar.gz", gzip.compress(tar_of(content)[:20000])))


def test_corruption_is_one_line_or_harmless(tmp_path):
    content = {f"{FOLDER}/{name}": data for name, data in files()[0].items()}
    whole, random = gzip.compress(tar_of(content), mtime=0), Random(0)
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        try:
            list_cifar10(put(tmp_path / "c.tar.gz", bytes(data)))
        except SourceError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 40  # gzip has a checksum
