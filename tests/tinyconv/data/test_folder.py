"""Folders of photos as they are found in the wild: odd names, damage, gaps.

Links, order and threads: test_sources.py and test_decode.py.
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from photo_bytes import laid_out, noisy_jpeg, plain, put, refused

from tinyconv.data import folder, read_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, cat (red) and dog (blue): three photos each to train, two to validate."""
    files = {}
    for split, count in (("train", 3), ("val", 2)):
        for k in range(count):
            files[f"{split}/cat/{k}.png"] = plain((200 + k, 0, 0))
            files[f"{split}/dog/{k}.png"] = plain((0, 0, 200 + k))
    return laid_out(tmp_path, files)


def test_files_that_cannot_be_read_are_named_and_leave_no_gap(root):
    bad = [
        put(root / "train/cat/0-notes.jpg", b"meow\n"),
        put(root / "train/cat/1-empty.jpg", b""),
        put(root / "train/dog/half.jpg", noisy_jpeg()[:700]),
        put(root / "val/dog/a.txt", b"labels"),
    ]
    put(root / "train/cat/.DS_Store", b"junk")
    put(root / "train/.hidden/x.png", plain(3))
    put(root / "train/readme.txt", b"beside the class folders: not looked at")
    put(root / "train/cat/images/deep/x.png", plain((77, 0, 0)))
    train, val, skipped = read_folder(str(root), 5)
    assert train.class_names == val.class_names == ("cat", "dog")
    assert [each.path for each in skipped] == bad
    reasons = ["not a photo in a format that Pillow reads", "empty file"]
    assert [each.reason for each in skipped[:2]] == reasons
    assert train.images[:, 2, 2, 0].tolist() == [200, 201, 202, 77, 0, 0, 0]
    assert train.images[:, 2, 2, 2].tolist() == [0, 0, 0, 0, 200, 201, 202]
    assert val.images[:, 2, 2, 2].tolist() == [0, 0, 200, 201]
    assert train.labels.tolist() == [0] * 4 + [1] * 3 and val.labels.tolist() == [0, 0, 1, 1]


def test_only_the_first_classes(root):
    laid_out(root, {"train/emu/x.png": plain(5), "val/emu/x.png": plain(5)})
    train, val, _ = read_folder(root, 4, classes=2)
    assert train.class_names == val.class_names == ("cat", "dog")
    assert len(train) == 6 and len(val) == 4
    for classes in (4, 1, 0, -1):
        with refused(f"cannot take {classes} of the 3 classes"):
            read_folder(root, 4, classes=classes)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX file names")
def test_odd_file_names(root):
    for name in ("two words.png", "späte Ähre 猫.png", "new\nline.png", "-rf.png", "no ending"):
        put(root / "val" / "cat" / name, plain((9, 9, 9)))
    odd = b"line\nbreak \xff.jpg" if sys.platform == "linux" else b"line\nbreak.jpg"
    bad = put(root / "val" / "dog" / os.fsdecode(odd), b"text")
    _, val, skipped = read_folder(root, 4)
    assert np.bincount(val.labels).tolist() == [7, 2]
    assert [each.path for each in skipped] == [bad]
    line = str(skipped[0])
    assert "\n" not in line and line.encode("utf-8") and line.endswith(skipped[0].reason)


def test_progress_wraps_the_iteration(root):
    seen = []

    def progress(iterable, total):
        for item in iterable:
            seen.append(total)
            yield item

    read_folder(root, 4, progress=progress)
    assert seen == [10] * 10


def spoil(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.write_bytes(b"not a photo")


@pytest.mark.parametrize(
    "breakage, message",
    [
        (lambda root: (root / "val").rename(root / "eval"), "has no folder 'val' .*'eval' with"),
        (spoil, "no readable photo of the class 'cat' in train .10 of all 10 .*0.png': not a phot"),
        (lambda root: spoil(root / "val"), "no readable photo of .*'cat' in val .4 of all 10"),
        (lambda root: spoil(root / "val/dog"), "no readable photo of .*'dog' in val .2 of all 10"),
        (shutil.rmtree, "no such folder"),
        (
            lambda root: (shutil.rmtree(root), put(root, b"a tar")),
            "is not a folder; unpack an archive, or prepare it",
        ),
    ],
)
def test_unusable_folders_are_explained_in_one_line(root, breakage, message):
    breakage(root)
    with refused(message):
        read_folder(root, 4)


def test_photos_that_do_not_fit_into_memory_are_refused_before_decoding(root, monkeypatch):
    monkeypatch.setattr(folder, "_available_memory", lambda: 10 * 64 * 64 * 3)
    with refused(r"10 photos of 64×64 need 0.00 GB.*available"):
        read_folder(root, 64)
    read_folder(root, 60)
    monkeypatch.setattr(folder, "_available_memory", lambda: None)
    read_folder(root, 64)
