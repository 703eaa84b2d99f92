"""What `prepare` writes, and what it refuses."""

import numpy as np
import pytest
from photo_bytes import laid_out, put, refused
from preparations import IDS, left_in, made, small_steps, source, stopping_at
from stores import rows
from tar_bytes import WNIDS, ilsvrc_archives, photo, tar_of

from tinyconv.data.photos import decode_square
from tinyconv.data.prepare import prepare
from tinyconv.data.sources import Options
from tinyconv.data.store import PhotoStore

__all__ = ["small_steps", "source"]  # fixtures


def pixels(photos):
    return rows(photos, range(len(photos)))


def test_the_content_of_the_file(source, tmp_path):
    lines, _ = made(source, tmp_path / "out.h5")
    assert lines[0].startswith("16 training and 7 validation photos, 3 classes; at 8×8 they need")
    store = PhotoStore(tmp_path / "out.h5")
    assert store.class_ids == store.class_names == IDS
    assert store.train.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert store.val.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for split, photos, count in (("train", store.train, 5), ("val", store.val, 2)):
        wanted = [
            decode_square(source / split / IDS[label] / f"{split}_{k}.PNG", 8)
            for label in range(3)
            for k in range(count)
        ]
        np.testing.assert_array_equal(pixels(photos), np.stack(wanted))
    assert store.settings["source"] == {"kind": "train/ and val/", "name": "photos"}
    assert store.settings["listed"] == {"train": 16, "val": 7}
    assert store.settings["size"] == 8 and store.settings["resampling"] == "bicubic"
    assert set(store.settings["versions"]) == {"tinyconv", "Pillow"}
    assert str(tmp_path) not in repr(store.settings)
    assert left_in(tmp_path) == []


def test_files_that_are_left_out_are_named(source, tmp_path):
    _, (skipped, _) = made(source, tmp_path / "out.h5")
    lines = (tmp_path / "out.skipped.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [str(each) for each in skipped] and len(lines) == 2
    assert lines[0].startswith(f"'train/{IDS[0]}/train_1b.PNG': ")
    assert lines[1] == rf"'val/{IDS[2]}/odd\n\x1b.PNG': not a photo in a format that Pillow reads"
    (source / f"train/{IDS[0]}/train_1b.PNG").unlink()
    (source / f"val/{IDS[2]}/odd\n\x1b.PNG").unlink()
    made(source, tmp_path / "out.h5", force=True)
    assert not (tmp_path / "out.skipped.txt").exists()


def test_the_number_of_workers_changes_nothing(source, tmp_path):
    for workers in (0, 1, 2, 7):
        prepare(source, tmp_path / f"{workers}.h5", size=8, workers=workers)
        same = (tmp_path / f"{workers}.h5").read_bytes() == (tmp_path / "0.h5").read_bytes()
        assert same, workers


def test_a_tar_and_its_folder_give_the_same_photos(source, tmp_path):
    files = {str(p.relative_to(source)): p.read_bytes() for p in source.rglob("*") if p.is_file()}
    made(source, tmp_path / "folder.h5")
    made(put(tmp_path / "p.tar", tar_of(dict(reversed(files.items())))), tmp_path / "tar.h5")
    one, other = PhotoStore(tmp_path / "folder.h5"), PhotoStore(tmp_path / "tar.h5")
    assert one.train.fingerprint() == other.train.fingerprint()
    assert one.val.fingerprint() == other.val.fingerprint()


def test_the_archives_of_ilsvrc(tmp_path):
    train, val, shown = ilsvrc_archives()
    labels = "".join(f"ILSVRC2012_val_{n:08}.JPEG {w}\n" for n, w in enumerate(shown, 1))
    files = {"ILSVRC2012_img_train.tar": train, "ILSVRC2012_img_val.tar": val}
    made(laid_out(tmp_path / "in", files | {"val.txt": labels.encode()}), tmp_path / "out.h5")
    store = PhotoStore(tmp_path / "out.h5")
    # tar_bytes gives photo k of class number n in WNIDS the red value 60 n + 2 k; val has 31 more.
    reds = [60 * WNIDS.index(wnid) + 2 * k for wnid in IDS for k in range(3)]
    assert pixels(store.train)[:, 4, 4, 0].tolist() == reds
    assert [IDS[label] for label in store.val.labels] == shown
    reds = [60 * WNIDS.index(wnid) + 31 for wnid in shown]
    assert pixels(store.val)[:, 4, 4, 0].tolist() == reds


@pytest.mark.parametrize("size", [None, 8])
def test_cifar10(tmp_path, size):
    files = {f"data_batch_{n}.bin": bytes([n % 2]) + bytes([40 * n]) * 3072 for n in range(1, 6)}
    files |= {"test_batch.bin": bytes([1]) + bytes([9]) * 3072, "batches.meta.txt": b"cat\ndog\n"}
    prepare(laid_out(tmp_path / "in", files), tmp_path / "out.h5", size=size)
    store = PhotoStore(tmp_path / "out.h5")
    assert store.size == (size or 32) and store.val.labels.tolist() == [1]
    assert store.train.labels.tolist() == [1, 0, 1, 0, 1] and store.class_ids == ("cat", "dog")
    assert (pixels(store.train) == np.array([40, 80, 120, 160, 200])[:, None, None, None]).all()


@pytest.mark.parametrize(
    "options, recorded, counts",
    [
        (Options(val_share=0.2), {"val_share": 0.2, "seed": 0}, (24, 6)),
        (Options(halves=True, seed=3), {"split": "half", "seed": 3}, (20, 10)),
    ],
)
def test_what_was_set_aside_is_recorded(tmp_path, options, recorded, counts):
    files = {f"n0000000{c}/{k}.png": photo(3 * c + k) for c in range(10) for k in range(3)}
    made(laid_out(tmp_path / "in", files), tmp_path / "out.h5", options=options)
    store = PhotoStore(tmp_path / "out.h5")
    assert (len(store.train), len(store.val)) == counts and len(store.class_ids) == 10
    assert recorded.items() <= store.settings.items()


# --- mistakes


def test_an_older_file_remains_without_force(source, tmp_path):
    out = put(tmp_path / "out.h5", b"an older one")
    with refused("exists already: give --force"):
        made(source, out)
    with pytest.raises(KeyboardInterrupt):
        made(source, out, force=True, progress=stopping_at(6))
    with refused("exists already: give --force"):
        made(source, out)
    assert out.read_bytes() == b"an older one"
    lines, _ = made(source, out, force=True)
    assert "resuming after 4 of 23 photos" in lines and PhotoStore(out)


def test_strict_stops_at_the_first_damaged_photo(source, tmp_path):
    with refused("train_1b.PNG': .*--strict; without it, it is"):
        made(source, tmp_path / "out.h5", strict=True)
    with pytest.raises(KeyboardInterrupt):
        made(source, tmp_path / "out.h5", progress=stopping_at(14))
    with refused("train_1b.PNG': "):  # was left out by the run before
        made(source, tmp_path / "out.h5", strict=True)
    made(source, tmp_path / "out.h5")
    made(source, tmp_path / "whole.h5")
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize("split, count", [("train", 16), ("val", 7)])
def test_nothing_readable(source, tmp_path, split, count):
    for path in (source / split).rglob("*.PNG"):
        path.write_bytes(b"no photo")
    with refused(f"none of the {count} files in {split} is a readable photo; '{split}/"):
        made(source, tmp_path / "out.h5")
    assert left_in(tmp_path) == [] and not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize(
    "out, settings, message",
    [
        ("folder.h5", {}, "is a folder: give the name of the file"),
        ("no/such/out.h5", {}, "no such folder"),
        ("out.h5", {"options": Options(val_share=0.2)}, "leave out --val-share"),
        ("out.h5", {"options": Options("x")}, "leave out --labels"),
        ("out.h5", {"options": Options(seed=-1)}, "seed -1: must be from 0"),
        ("x" * 250 + ".h5", {}, "cannot write"),
        ("out.h5", {"size": 0}, "the size must be 1 to 4096 pixels, not 0"),
        ("out.h5", {"size": 5000}, "not 5000"),
        ("out.h5", {"workers": -1}, "cannot be negative"),
    ],
)
def test_mistakes_leave_nothing_behind(source, tmp_path, out, settings, message):
    (tmp_path / "folder.h5").mkdir()
    before = sorted(tmp_path.iterdir())
    with refused(message):
        prepare(source, tmp_path / out, **{"size": 8, **settings})
    assert sorted(tmp_path.iterdir()) == before
