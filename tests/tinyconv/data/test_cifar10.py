"""CIFAR-10's binary files, made in miniature."""

import gzip

import numpy as np
import pytest
from photo_bytes import corrupted, laid_out, put, refused
from tar_bytes import PACKED, source_of, tar_of

from tinyconv.data.cifar10 import BATCHES, NAMES
from tinyconv.data.decode import decode_in_order
from tinyconv.data.listing import SourceError
from tinyconv.data.sources import Options, list_source

FOLDER = "cifar-10-batches-bin"


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)


def files(above: str = "") -> dict[str, bytes]:
    """Two records a batch, with the labels 0 to 2 in turns and 2."""
    content = {above + NAMES: b"airplane\nautomobile\nbird\n\n"}
    planes = images().transpose(0, 3, 1, 2).reshape(6, 2, -1)
    for k, name in enumerate(BATCHES):
        content[above + name] = b"".join(
            bytes([label]) + each.tobytes()
            for label, each in zip((k % 3, 2), planes[k], strict=True)
        )
    return content


def of_python(above: str = "") -> dict[str, bytes]:
    return {f"{above}data_batch_1": b"pickled", f"{above}batches.meta": b"pickled"}


@pytest.mark.parametrize("above", ["", f"{FOLDER}/"])
@pytest.mark.parametrize("beside", [{}, {"cifar-10-binary.tar.gz": b"what it was unpacked from"}])
@pytest.mark.parametrize("packed", PACKED)
def test_planes_become_channels_last(tmp_path, packed, above, beside):
    listing = list_source(source_of(tmp_path / "s", files(above) | beside, packed))
    assert listing.class_ids == ("airplane", "automobile", "bird") and listing.size == 32
    decoded = decode_in_order([photo.found for photo in listing.photos], 32, 1)
    np.testing.assert_array_equal(np.stack([image for image, _ in decoded]), images())
    assert listing.counts() == {"train": 10, "val": 2}
    assert [photo.label for photo in listing.photos] == [0, 2, 1, 2, 2, 2, 0, 2, 1, 2, 2, 2]
    assert listing.photos[-1].found.name == "test_batch.bin 1"


def test_one_pixel_changes_the_digest(tmp_path):
    content, digests = files(), set()
    for change in (0, 1):
        content["test_batch.bin"] = content["test_batch.bin"][:-1] + bytes([change])
        digests.add(list_source(laid_out(tmp_path, content)).digest())
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
    content = {name: data for name, data in (files() | changes).items() if data is not None}
    with refused(message):
        list_source(laid_out(tmp_path / "s", content))


@pytest.mark.parametrize("above", ["", "cifar-10-batches-py/"])
@pytest.mark.parametrize("packed", PACKED)
def test_the_python_version_is_refused_by_name(tmp_path, above, packed):
    source = source_of(tmp_path / "s", of_python(above), packed)
    with refused("give the binary version, cifar-10-binary.tar.gz"):
        list_source(source)


def test_the_matlab_version_and_options_that_do_not_fit(tmp_path):
    with refused("give the binary version"):
        list_source(laid_out(tmp_path / "m", {"cifar-10-batches-mat/data_batch_1.mat": b"x"}))
    source = laid_out(tmp_path / "s", files())
    for options, message in (
        (Options(val_share=0.2), "is CIFAR-10: leave out --labels and --val-share"),
        (Options(halves=True), "is CIFAR-10: leave out --labels and --split half"),
        (Options(labels="x"), "is CIFAR-10: leave out --labels"),
    ):
        with refused(message):
            list_source(source, options)


def test_a_truncated_archive(tmp_path):
    whole = tar_of(files(f"{FOLDER}/"))
    for content in (gzip.compress(whole)[:-50], gzip.compress(whole[:20000]), whole[:20000]):
        with refused("truncated"):
            list_source(put(tmp_path / "c.tar.gz", content))


def test_corruption_is_one_line_or_harmless(tmp_path):
    whole, refusals = gzip.compress(tar_of(files(f"{FOLDER}/")), mtime=0), 0
    for data in corrupted(whole, 60, changes=1):
        try:
            list_source(put(tmp_path / "c.tar.gz", data))
        except SourceError as error:
            assert "\n" not in str(error)
            refusals += 1
    assert refusals > 40  # gzip has a checksum
