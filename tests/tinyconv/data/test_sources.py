"""Every layout that can be prepared, and a clear line for those that cannot."""

import dataclasses
import gzip
import os
import sys
from collections import Counter

import pytest
from photo_bytes import put
from tar_bytes import WNIDS, class_folders, ilsvrc_archives, photo, tar_of

from tinyconv.data.listing import Found, Listing, Photo, SourceError, printable
from tinyconv.data.sources import Options, list_source
from tinyconv.data.trees import open_tree

IDS = tuple(sorted(WNIDS))


def laid_out(folder, files):
    for name, content in files.items():
        put(folder / name, content)
    return folder


def shown(listing):
    return [(p.split, listing.class_ids[p.label], p.found.name) for p in listing.photos]


def names_only(listing):
    return [(split, name, path.rpartition("/")[2]) for split, name, path in shown(listing)]


WANTED = [
    (split, wnid, f"{split}_{k}.PNG")
    for split, count in (("train", 3), ("val", 2))
    for wnid in IDS
    for k in range(count)
]


def source_of(folder, files, packed):
    """The files in a folder, a tar, or a compressed tar."""
    if packed is None:
        return laid_out(folder, files)
    content = gzip.compress(tar_of(files)) if packed == ".tar.gz" else tar_of(files)
    return put(folder.with_name(f"{folder.name}{packed}"), content)


PACKED = [None, ".tar", ".tar.gz"]


@pytest.mark.parametrize("above", ["", "one/"])
@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize(
    "train, val",
    [("train", "val"), ("train", "test"), ("Train", "Val"), ("TRAIN", "validation"),
     ("Training", "Testing")],
)  # fmt: skip
def test_train_and_val(tmp_path, above, packed, train, val):
    files = {f"{above}{name}": content for name, content in class_folders().items()}
    files = {
        name.replace("val/", f"{val}/").replace("train/", f"{train}/"): content
        for name, content in files.items()
    }
    files = {"readme.txt": b"x"} | dict(reversed(files.items()))
    source = source_of(tmp_path / "s", files, packed)
    listing = list_source(source)
    assert listing.class_ids == listing.class_names == IDS and names_only(listing) == WANTED
    assert listing.name == source.name and listing.choices == {} and listing.size == 256
    assert all(photo.found.read() for photo in listing.photos)
    for split in ("train", "val"):  # to evaluate on one of them
        listing = list_source(source, Options(splits=(split,)))
        assert names_only(listing) == [each for each in WANTED if each[0] == split]


@pytest.mark.parametrize("val", ["val", "test"])
def test_one_split_is_enough_to_evaluate_on(tmp_path, val):
    source = laid_out(tmp_path / "s", {f"{val}/{name}/x.png": photo(1) for name in "ab"})
    listing = list_source(source, Options(splits=("val",)))
    assert listing.counts() == {"train": 0, "val": 2} and listing.class_ids == ("a", "b")
    with pytest.raises(SourceError, match="no folder 'train'"):
        list_source(source, Options(splits=("train",)))
    flat = laid_out(tmp_path / "t", {"val/1.png": photo(1), "val/2.png": photo(2)})
    labels = put(tmp_path / "l.txt", b"1.png cat\n2.png dog\n")
    assert list_source(flat, Options(labels, splits=("val",))).class_ids == ("cat", "dog")


TINY = {
    "tiny-imagenet-200/words.txt": f"{IDS[1]}\ttench, Tinca tinca\n".encode(),
    "tiny-imagenet-200/val/val_annotations.txt": f"v0\t{IDS[2]}\t0\t9\nv1\t{IDS[0]}\t0".encode(),
    **{f"tiny-imagenet-200/train/{w}/{w}_boxes.txt": b"x\t0" for w in IDS},
    **{f"tiny-imagenet-200/train/{w}/images/{w}_{k}.JPEG": b"x" for w in IDS for k in range(2)},
    **{f"tiny-imagenet-200/val/images/v{k}": b"x" for k in range(2)},
    "tiny-imagenet-200/test/images/t0": b"x",
}


@pytest.mark.parametrize("packed", PACKED)
def test_tiny_imagenet(tmp_path, packed):
    listing = list_source(source_of(tmp_path / "s", TINY, packed))
    train = [("train", w, f"{w}_{k}.JPEG") for w in IDS for k in range(2)]
    assert names_only(listing) == [*train, ("val", IDS[2], "v0"), ("val", IDS[0], "v1")]
    assert packed or listing.class_names[1] == "tench, Tinca tinca"
    assert f"'v0' is '{IDS[2]}', 'v1' is '{IDS[0]}'" in listing.notes[0]


IMAGES = {f"images/{name}/{k}.jpg": b"x" for name in ("ape", "bee") for k in range(3)}
LISTS = {
    "Food-101": {"meta/train.txt": b"ape/0\n", "meta/test.txt": b"bee/1\nape/2\n", "meta/a": b""},
    "Indoor-67": {"TestImages.txt": b"bee/1.jpg\r\nape/2.jpg\r\n", "TrainImages.txt": b""},
    "CUB-200": {
        "images.txt": b"1 ape/0.jpg\n2 ape/1.jpg\n3 ape/2.jpg\n4 bee/1.jpg\n",
        "train_test_split.txt": b"1 1\n2 1\n3 0\n4 0\n",
    },
}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("name", LISTS)
def test_class_folders_with_lists_of_photos(tmp_path, name, packed):
    source = source_of(tmp_path / "s", IMAGES | LISTS[name], packed)
    listing = list_source(source)
    assert listing.class_ids == ("ape", "bee") and listing.choices == {}
    assert listing.counts() == {"train": 4, "val": 2}
    val = [
        (each, path.rpartition("/")[2]) for split, each, path in shown(listing) if split == "val"
    ]
    assert val == [("ape", "2.jpg"), ("bee", "1.jpg")] and "train and val: from" in listing.notes[0]
    assert list_source(source, Options(splits=("val",))).counts() == {"train": 0, "val": 2}
    with pytest.raises(SourceError, match="leave out --val-share"):
        list_source(source, Options(val_share=0.2))


@pytest.mark.parametrize(
    "text, message",
    [
        (b"ape/1\nape/9\n", "'meta/test.txt' names photos that are not there: 'ape/9'"),
        (b"", "'meta/test.txt' names 0 of 6 photos"),
        (b"\xff", "names photos that are not there"),
    ],
)
def test_lists_that_do_not_fit(tmp_path, text, message):
    with pytest.raises(SourceError, match=message):
        list_source(laid_out(tmp_path / "s", IMAGES | {"meta/test.txt": text}))


def test_a_class_may_be_called_train(tmp_path):
    source = laid_out(
        tmp_path / "s", {f"{name}/{k}.png": b"x" for name in ("car", "train") for k in "12"}
    )
    listing = list_source(source, Options(val_share=0.5))
    assert listing.class_ids == ("car", "train") and listing.counts() == {"train": 2, "val": 2}


def test_names_that_look_alike_or_control_a_terminal_are_escaped(tmp_path):
    files = {f"train/{name}/x": b"x" for name in ("é", "b\x1b[2J")} | {"val/e\u0301/x": b"x"}
    with pytest.raises(SourceError, match=r"lacks the class 'e\\u0301' of val") as error:
        list_source(laid_out(tmp_path / "s", files))
    assert str(error.value).isprintable()
    assert [printable(name) for name in ("é", "e\u0301", "猫", "\u1112\u1161", "a\nb\udce9")] == [
        "é", r"e\u0301", "猫", r"\u1112\u1161", r"a\nb\udce9",
    ]  # fmt: skip


def test_val_is_preferred_to_test_and_photos_without_classes_are_not_taken(tmp_path):
    files = class_folders() | {"test/a/x.png": photo(1)}
    assert names_only(list_source(laid_out(tmp_path / "s", files))) == WANTED
    files = class_folders(val=0) | {"test/x.png": photo(1)}
    with pytest.raises(SourceError, match="no folder 'val'"):
        list_source(laid_out(tmp_path / "t", files))


def test_everything_but_the_place_decides_the_digest():
    found = Found("a/x.png", "/one/a/x.png", 0, 10, 5)
    listing = Listing("k", "n", ("a", "b"), ("A", "B"), [Photo("train", 0, found)])
    photos = [
        Photo("val", 0, found),
        Photo("train", 1, found),
        Photo("train", 0, found._replace(name="a/y.png")),
        Photo("train", 0, found._replace(name="a/\udce9.png")),
        Photo("train", 0, found._replace(offset=1)),
        Photo("train", 0, found._replace(size=11)),
        Photo("train", 0, found._replace(stamp=6)),
        Photo("train", 0, found._replace(problem="empty file")),
    ]
    listings = [dataclasses.replace(listing, photos=[photo]) for photo in photos]
    for changes in ({"kind": "x"}, {"class_ids": ("a", "c")}, {"class_names": ("A", "C")}):
        listings.append(dataclasses.replace(listing, **changes))
    digests = {listing.digest(), *(each.digest() for each in listings)}
    assert len(digests) == 1 + len(listings)
    moved = [Photo("train", 0, found._replace(path="/two/a/x.png"))]
    assert dataclasses.replace(listing, photos=moved).digest() == listing.digest()


FILES = {
    "b/x": b"1",
    "a-b/y": b"2",
    "a/z/deep": b"3",
    "a/é": b"4",
    "a/.hidden/file": b"5",
    "a/z.jpg": b"6",
    "loose": b"7",
    ".DS_Store": b"8",
    "a/z/._deep": b"9",
}


@pytest.mark.parametrize("packed", [False, True])
def test_folders_and_archives_give_the_same_tree(tmp_path, packed):
    files = dict(reversed(FILES.items()))
    source = put(tmp_path / "t.tar", tar_of(files)) if packed else laid_out(tmp_path / "t", files)
    tree, notes = open_tree(source)
    assert tree.folders == ["a", "a-b", "b"] and notes == []
    assert [each.name for each in tree.loose] == ["loose"]
    # As a walk through folders goes: "z/deep" before "z.jpg", though "." is less than "/".
    assert [each.name for each in tree.below("a").files] == ["a/z/deep", "a/z.jpg", "a/é"]
    assert [each.name for each in tree.files][-2:] == ["b/x", "loose"]
    assert [each.name for each in tree.below("a").below("z").loose] == ["a/z/deep"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX links")
def test_links_are_followed_and_rings_end(tmp_path):
    put(tmp_path / "elsewhere/x.png", b"x")
    folder = tmp_path / "top"
    put(folder / "1.png", b"")
    for name in ("ring", "twice"):
        (folder / name).symlink_to(folder, target_is_directory=True)
    for name in ("train", "val"):  # the same photos twice
        (folder / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "nowhere").symlink_to(tmp_path / "gone")
    (folder / "self").symlink_to(folder / "self")
    os.mkfifo(folder / "pipe")
    assert {each.name: each.problem for each in open_tree(folder)[0].files} == {
        "1.png": "empty file",
        "nowhere": "a link to nowhere",
        "pipe": "not an ordinary file",
        "self": "a link to nowhere",
        "train/x.png": "",
        "val/x.png": "",
    }
    with pytest.raises(SourceError, match="neither a folder nor an ordinary file"):
        open_tree(folder / "pipe")
    (folder / "/".join("d" * 250)).mkdir(parents=True)
    with pytest.raises(SourceError, match="folders are nested more than 200 deep"):
        open_tree(folder)


def test_names_outside_of_the_archive_are_left_out_and_named(tmp_path):
    files = {f"../{k}": b"x" for k in range(12)} | {"/etc/passwd": b"x", "fine/x": b"x"}
    tree, notes = open_tree(put(tmp_path / "a.tar", tar_of(files)))
    assert tree.folders == ["fine"] and [each.name for each in tree.files] == ["fine/x"]
    assert notes == ["left out: '../0' and 12 more: its name is not below the archive's top"]


def test_classes_have_the_names_of_a_list_beside_them(tmp_path):
    laid_out(tmp_path / "s", class_folders())
    put(tmp_path / "LOC_synset_mapping.txt", f"{IDS[1]} tench, Tinca tinca\n".encode())
    assert list_source(tmp_path / "s").class_names == (IDS[0], "tench, Tinca tinca", IDS[2])


@pytest.fixture
def solution():
    """What the four validation photos of `ilsvrc_archives` show, as CSV."""
    rows = [f"ILSVRC2012_val_{n:08},{w} 0 0 1 1" for n, w in enumerate(ilsvrc_archives()[2], 1)]
    return "\n".join(["ImageId,PredictionString", *rows]).encode()


@pytest.mark.parametrize("train_packed", [False, True])
@pytest.mark.parametrize("val_packed", [False, True])
def test_ilsvrc(tmp_path, solution, train_packed, val_packed):
    train, val, of_val = ilsvrc_archives()
    if train_packed:
        put(tmp_path / "ILSVRC2012_img_train.tar", train)
    else:
        for wnid in WNIDS:
            for k in range(3):
                put(tmp_path / "train" / wnid / f"{wnid}_{k}.JPEG", photo(k))
    if val_packed:
        put(tmp_path / "ILSVRC2012_img_val.tar", val)
    else:
        for k in range(4):
            put(tmp_path / "val" / f"ILSVRC2012_val_{k + 1:08}.JPEG", photo(k))
    put(tmp_path / "LOC_val_solution.csv", solution)
    listing = list_source(tmp_path)
    train_wanted = [("train", w, f"{w}_{k}.JPEG") for w in IDS for k in range(3)]
    val_wanted = [("val", w, f"ILSVRC2012_val_{n:08}.JPEG") for n, w in enumerate(of_val, 1)]
    assert names_only(listing) == train_wanted + val_wanted
    first = f"'ILSVRC2012_val_00000001' is '{of_val[0]}'"
    assert listing.notes[0].startswith(f"labels: {str(tmp_path / 'LOC_val_solution.csv')!r}, colu")
    assert first in listing.notes[0] and len(listing.notes) == 1


def test_kaggles_folders(tmp_path, solution):
    inside = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    for wnid in WNIDS:
        put(inside / "train" / wnid / "x.JPEG", photo(1))
    put(inside / "val" / "ILSVRC2012_val_00000002.JPEG", photo(1))
    put(inside / "test" / "ILSVRC2012_test_00000001.JPEG", photo(1))
    put(tmp_path / "ILSVRC" / "Annotations" / "x.xml", b"")
    put(tmp_path / "LOC_val_solution.csv", solution)
    listing = list_source(tmp_path)
    assert listing.counts() == {"train": 3, "val": 1}
    assert listing.notes[1] == "note: 4 labels for 1 photos"


@pytest.mark.parametrize("packed", [False, True])
def test_a_flat_val_with_labels_given(tmp_path, packed):
    files = {f"train/{name}/x.png": photo(1) for name in ("cat", "dog")}
    files |= {"val/a.png": photo(2), "val/b.png": photo(3)}
    source = put(tmp_path / "s.tar", tar_of(files)) if packed else laid_out(tmp_path / "s", files)
    labels = put(tmp_path / "l.txt", b"b.png cat\na.png dog\n")
    assert shown(list_source(source, Options(labels)))[2:] == [
        ("val", "dog", "val/a.png"),
        ("val", "cat", "val/b.png"),
    ]


def test_labels_that_do_not_fit(tmp_path):
    files = {f"train/{name}/x.png": photo(1) for name in ("cat", "dog")} | {"val/a.png": b"x"}
    source = laid_out(tmp_path / "s", files)
    with pytest.raises(SourceError, match="labels are needed"):
        list_source(source)
    with pytest.raises(SourceError, match="no label for 'val/a.png'"):
        list_source(source, Options(put(tmp_path / "l.txt", b"b.png cat\n")))
    with pytest.raises(SourceError, match="of the class 'emu', which is not in 'train'"):
        list_source(source, Options(put(tmp_path / "l.txt", b"a.png emu\n")))


def test_a_share_is_set_aside(tmp_path):
    files = {f"c{c}/{k:02}.png": bytes([c, k]) for c in range(3) for k in range(20)}
    source = laid_out(tmp_path / "s", files)
    listing = list_source(source, Options(val_share=0.25))
    assert listing.counts() == {"train": 45, "val": 15}
    assert listing.choices == {"val_share": 0.25, "seed": 0}
    assert Counter(name.rpartition("/")[2] for _, _, name in shown(listing)) == Counter(
        name.rpartition("/")[2] for name in files
    )
    assert all(name.startswith(f"{wnid}/") for _, wnid, name in shown(listing))
    assert shown(list_source(source, Options(val_share=0.25))) == shown(listing)
    assert shown(list_source(source, Options(val_share=0.25, seed=1))) != shown(listing)
    packed = put(tmp_path / "s.tar", tar_of(dict(reversed(files.items()))))
    assert shown(list_source(packed, Options(val_share=0.25))) == shown(listing)
    for split in ("train", "val"):  # in the order of the files, not of the draw
        names = [name for each, _, name in shown(listing) if each == split]
        assert names == sorted(names)


def test_flat_photos_with_labels_and_a_share(tmp_path):
    source = laid_out(tmp_path / "s", {f"{k}.png": photo(k) for k in range(10)})
    rows = "".join(f"{k}.png {('cat', 'dog')[k % 2]}\n" for k in range(10))
    labels = put(source / "labels.txt", rows.encode())  # among the photos
    listing = list_source(source, Options(labels, val_share=0.3))
    assert listing.class_ids == ("cat", "dog") and listing.counts() == {"train": 7, "val": 3}
    assert all(name == ("cat", "dog")[int(path[0]) % 2] for _, name, path in shown(listing))


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "folders: none; files beside them: 0; known layouts"),
        (
            {"x.txt": b"", "y.txt": b""},
            "files beside them: 2; known layouts, in a folder or a .tar: train",
        ),
        (
            {"train/a/x": b"", "train/b/x": b"", "eval/a/x": b""},
            "no folder 'val' .*'eval' with folders 'a', 'train' with .*; known layouts",
        ),
        ({"val/a/x": b"", "val/b/x": b""}, "no folder 'train'"),
        ({"train/x.png": b"x", "val/a/x": b"x"}, "train has no class folders"),
        ({"train/a/x": b"x", "val/a/x": b"x"}, "only one class in .*'a'"),
        ({"train/a/x": b"", "train/b/x": b"", "val/a/x": b""}, "val lacks the class 'b'"),
        (
            {"train/a/x": b"", "val/a/x": b"", "val/c/x": b""},
            "train lacks the class 'c' of val",
        ),
        ({"a/x": b"", "b/x": b"", "b/y": b""}, "3 files of 2 classes .'a' and 1 more.*--val-share"),
        ({"n1.tar": b"x", "n2.tar": b"x"}, "known layouts.*the archives of ILSVRC"),
        (  # no classes called so
            {f"{split}1/{name}/x": b"" for split in ("Train", "Val") for name in "ab"},
            "folders: 'Train1' with folders 'a' and 1 more, 'Val1' with.*known layouts",
        ),
        ({"101/a/x": b"", "101/b/x": b"", "Annotations/a/x": b"", "y/x": b""}, "'101' with.*known"),
        ({"ILSVRC2012_img_train.tar": b"x"}, "no folder 'val'"),
        ({"ILSVRC2012_img_train.tar": b"", "val/a": b""}, "is not a tar archive"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_cannot_be_prepared_is_explained_in_one_line(tmp_path, files, message, packed):
    (tmp_path / "s").mkdir()
    source = put(tmp_path / "s.tar", tar_of(files)) if packed else laid_out(tmp_path / "s", files)
    with pytest.raises(SourceError, match=message) as error:
        list_source(source)
    assert "\n" not in str(error.value)


def test_an_empty_class_folder(tmp_path):
    laid_out(tmp_path, class_folders())
    (tmp_path / "train" / "emu").mkdir()
    (tmp_path / "val" / "emu").mkdir()
    with pytest.raises(SourceError, match="train/emu' is empty"):
        list_source(tmp_path)


def test_options_that_do_not_fit_the_source(tmp_path):
    source = laid_out(tmp_path / "s", class_folders())
    with pytest.raises(SourceError, match="has its own val: leave out --val-share"):
        list_source(source, Options(val_share=0.2))
    with pytest.raises(SourceError, match="val has class folders: leave out --labels"):
        list_source(source, Options(put(tmp_path / "l.txt", b"a b\n")))
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(SourceError, match="--val-share must be between 0 and 1"):
            list_source(source, Options(val_share=share))
    with pytest.raises(SourceError, match="is 0: it leaves none to validate with"):
        list_source(source / "train", Options(val_share=0.01))
    with pytest.raises(SourceError, match="is 9: it leaves none to train with"):
        list_source(source / "train", Options(val_share=0.99))


def test_sources_that_are_no_folder_or_tar(tmp_path, monkeypatch):
    with pytest.raises(SourceError, match="no such file or folder"):
        list_source(tmp_path / "gone")
    with pytest.raises(SourceError, match="not a tar archive; known"):
        list_source(put(tmp_path / "x.txt", b"hello\n" * 200))
    monkeypatch.setattr("tinyconv.data.archives.MAX_UNPACKED", 5000)
    with pytest.raises(SourceError, match="unpacks to over 5,000 bytes: unpack it, and give the f"):
        list_source(put(tmp_path / "x.tar.gz", gzip.compress(tar_of(class_folders()))))
    with pytest.raises(SourceError, match="truncated"):
        list_source(put(tmp_path / "x.tar", tar_of(class_folders())[:5000]))


def test_names_that_are_no_unicode_can_be_stored(tmp_path):
    source = put(tmp_path / "x.tar", tar_of({"caf\udce9/x": b"x", "tea/x": b"x", "tea/y": b""}))
    ids = list_source(source, Options(val_share=0.4)).class_ids
    assert ids == ("caf\\udce9", "tea") and all(name.encode() for name in ids)
