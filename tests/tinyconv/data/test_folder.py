"""Folders of photos as they are found in the wild: odd names, links, damage, gaps."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from photo_bytes import noisy_jpeg, plain, put

from tinyconv.data import folder, read_folder
from tinyconv.data.listing import SourceError

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX file names and links")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, cat (red) and dog (blue): three photos each to train, two to validate."""
    for split, count in (("train", 3), ("val", 2)):
        for k in range(count):
            put(tmp_path / split / "cat" / f"{k}.png", plain((200 + k, 0, 0)))
            put(tmp_path / split / "dog" / f"{k}.png", plain((0, 0, 200 + k)))
    return tmp_path


def test_reads_both_splits_in_sorted_order(root):
    train, val, skipped = read_folder(root, 5)
    assert train.class_names == val.class_names == ("cat", "dog") and skipped == []
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1] and val.labels.tolist() == [0, 0, 1, 1]
    assert train.images[:, 2, 2, 0].tolist() == [200, 201, 202, 0, 0, 0]
    assert val.images[:, 2, 2, 2].tolist() == [0, 0, 200, 201]


def test_what_cannot_be_read_is_named_and_leaves_no_gap(root):
    bad = [
        put(root / "train/cat/0-notes.jpg", b"meow\n"),
        put(root / "train/cat/1-empty.jpg", b""),
        put(root / "train/dog/half.jpg", noisy_jpeg()[:700]),
        put(root / "val/dog/a.txt", b"labels"),
    ]
    put(root / "train/cat/.DS_Store", b"junk")
    put(root / "train/.hidden/x.png", plain(3))
    put(root / "train/readme.txt", b"beside the class folders: not looked at")
    train, val, skipped = read_folder(str(root), 5)
    assert [each.path for each in skipped] == bad
    assert [each.reason for each in skipped[:2]] == [
        "not a photo in a format that Pillow reads",
        "empty file",
    ]
    assert train.images[:, 2, 2, 0].tolist() == [200, 201, 202, 0, 0, 0]
    assert train.images[:, 2, 2, 2].tolist() == [0, 0, 0, 200, 201, 202]
    assert val.images[:, 2, 2, 2].tolist() == [0, 0, 200, 201]
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1] and val.labels.tolist() == [0, 0, 1, 1]


def test_the_number_of_decoding_threads_changes_nothing(root):
    for k in range(30):
        put(root / "train" / "cat" / f"n{k}.jpg", noisy_jpeg(k)[: 500 if k % 7 == 3 else None])
    one, *_, skipped = read_folder(root, 16, threads=1)
    many, *_, skipped_too = read_folder(root, 16, threads=7)
    assert one.images.tobytes() == many.images.tobytes() and len(skipped) == 4
    assert skipped == skipped_too and one.labels.tolist() == many.labels.tolist()


def test_folders_within_a_class_belong_to_it(root):
    put(root / "train/cat/images/deep/x.png", plain((77, 0, 0)))
    train, _, _ = read_folder(root, 4)
    assert train.images[:4, 0, 0, 0].tolist() == [200, 201, 202, 77]


def test_only_the_first_classes(root):
    put(root / "train/emu/x.png", plain(5))
    put(root / "val/emu/x.png", plain(5))
    train, val, _ = read_folder(root, 4, classes=2)
    assert train.class_names == val.class_names == ("cat", "dog")
    assert len(train) == 6 and len(val) == 4


@posix
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


@posix
def test_links_are_followed_and_rings_end(root):
    elsewhere = put(root / "elsewhere" / "x.png", plain((50, 0, 0)))
    cat = root / "train" / "cat"
    (cat / "3.png").symlink_to(elsewhere)
    (cat / "ring").symlink_to(cat, target_is_directory=True)
    (cat / "nowhere.png").symlink_to(root / "gone.png")
    (cat / "self.png").symlink_to(cat / "self.png")
    os.mkfifo(cat / "pipe.png")
    train, _, skipped = read_folder(root, 4)
    assert train.images[:4, 0, 0, 0].tolist() == [200, 201, 202, 50]
    assert [each.path.name for each in skipped] == ["nowhere.png", "pipe.png", "self.png"]


def test_progress_wraps_the_iteration(root):
    seen = []

    def progress(iterable, total):
        for item in iterable:
            seen.append(total)
            yield item

    read_folder(root, 4, progress=progress)
    assert seen == [10] * 10


def remove(folder: Path) -> Path:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    return folder


def spoil(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"not a photo")


@pytest.mark.parametrize(
    "breakage, message",
    [
        (remove, "no such folder"),
        (lambda root: remove(root).write_text("x"), "is not a folder"),
        (lambda root: remove(root / "train"), "has no folder 'train' .*'val'"),
        (
            lambda root: (root / "val").rename(root / "eval"),
            "has no folder 'val' .*'eval', 'train'",
        ),
        (lambda root: [remove(root / "train" / c) for c in ("cat", "dog")], "no class folders"),
        (lambda root: [remove(root / s / "cat") for s in ("train", "val")], "at least two"),
        (lambda root: remove(root / "val" / "dog"), "lacks the class 'dog'"),
        (lambda root: (root / "val" / "emu").mkdir(), "'emu', which is not in 'train'"),
        (spoil, "no readable photo of the class 'cat' in train .10 of all 10 .*0.png': not a phot"),
        (lambda root: spoil(root / "val"), "no readable photo of .*'cat' in val .4 of all 10"),
        (lambda root: spoil(root / "val/dog"), "no readable photo of .*'dog' in val .2 of all 10"),
        (lambda root: [p.unlink() for p in (root / "train/dog").iterdir()], "train/dog' is empty"),
    ],
)
def test_unusable_folders_are_explained_in_one_line(root, breakage, message):
    breakage(root)
    with pytest.raises(SourceError, match=message) as error:
        read_folder(root, 4)
    assert "\n" not in str(error.value)


def test_more_classes_than_there_are_or_too_few(root):
    for classes in (3, 1, 0, -1):
        with pytest.raises(SourceError, match=f"cannot take {classes} of the 2 classes"):
            read_folder(root, 4, classes=classes)


def test_what_does_not_fit_into_memory_is_refused_before_decoding(root, monkeypatch):
    monkeypatch.setattr(folder, "_available_memory", lambda: 10 * 64 * 64 * 3)
    with pytest.raises(SourceError, match=r"10 photos of 64×64 need 0.00 GB.*available"):
        read_folder(root, 64)
    read_folder(root, 60)
    monkeypatch.setattr(folder, "_available_memory", lambda: None)
    read_folder(root, 64)
