"""Every layout that can be prepared, and a clear line for those that cannot."""

import dataclasses
import gzip
import hashlib
import os
import sys
from collections import Counter

import pytest
from photo_bytes import laid_out, put, refused
from tar_bytes import PACKED, WNIDS, class_folders, ilsvrc_archives, photo, source_of, tar_of

from tinyconv.data.listing import Found, Listing, Photo, printable
from tinyconv.data.sources import Options, list_source
from tinyconv.data.trees import open_tree

IDS = tuple(sorted(WNIDS))
ONLY_VAL = Options(splits=("val",))


def shown(listing):
    return [(p.split, listing.class_ids[p.label], p.found.name) for p in listing.photos]


def names_only(listing, only=("train", "val")):
    return [(s, name, path.rpartition("/")[2]) for s, name, path in shown(listing) if s in only]


def wanted(*parts):
    """(split, class, file) in the order of a listing; parts: (split, photos of a class)."""
    return [(s, wnid, f"{s}_{k}.PNG") for s, count in parts for wnid in IDS for k in range(count)]


WANTED = wanted(("train", 3), ("val", 2))


@pytest.mark.parametrize("above", ["", "one/"])
@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize(
    "train, val",
    [("train", "val"), ("train", "test"), ("Train", "Val"), ("TRAIN", "validation"),
     ("Training", "Testing")],
)  # fmt: skip
def test_train_and_val(tmp_path, above, packed, train, val):
    files = {
        f"{above}{name.replace('val/', f'{val}/').replace('train/', f'{train}/')}": content
        for name, content in class_folders().items()
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
    listing = list_source(source, ONLY_VAL)
    assert listing.counts() == {"train": 0, "val": 2} and listing.class_ids == ("a", "b")
    with refused("no folder 'train'"):
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


# --- train and val from lists, or drawn

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
    assert names_only(listing, "val") == [("val", "ape", "2.jpg"), ("val", "bee", "1.jpg")]
    assert "train and val: from" in listing.notes[0]
    assert list_source(source, ONLY_VAL).counts() == {"train": 0, "val": 2}
    for options, leave_out in ((Options(val_share=0.2), "--val-share"), (HALVES, "--split half")):
        with refused(f"leave out {leave_out}"):
            list_source(source, options)


@pytest.mark.parametrize(
    "text, message",
    [
        (b"ape/1\nape/9\n", "'meta/test.txt' names photos that are not there: 'ape/9'"),
        (b"", "'meta/test.txt' names 0 of 6 photos"),
        (b"\xff", "names photos that are not there"),
    ],
)
def test_lists_that_do_not_fit(tmp_path, text, message):
    source = laid_out(tmp_path / "s", IMAGES | {"meta/test.txt": text})
    with refused(message):
        list_source(source)


CLASSES = {f"c{c}/{k:02}.png": bytes([c, k]) for c in range(3) for k in range(20)}
HALVES = Options(halves=True)


@pytest.mark.parametrize("drawing", [{"val_share": 0.25}, {"halves": True}])
def test_validation_photos_are_drawn_whatever_the_order_of_files(tmp_path, drawing):
    source = laid_out(tmp_path / "s", CLASSES)
    listing = list_source(source, Options(**drawing))
    share = drawing.get("val_share", 0.5)
    assert listing.counts() == {"train": 60 * (1 - share), "val": 60 * share}
    assert sorted(path for _, _, path in shown(listing)) == sorted(CLASSES)
    assert all(name.startswith(f"{wnid}/") for _, wnid, name in shown(listing))
    assert shown(list_source(source, Options(**drawing))) == shown(listing)
    assert shown(list_source(source, Options(**drawing, seed=1))) != shown(listing)
    packed = put(tmp_path / "s.tar", tar_of(dict(reversed(CLASSES.items()))))
    assert shown(list_source(packed, Options(**drawing))) == shown(listing)
    for split in ("train", "val"):  # in the order of the files, not of the draw
        names = [name for each, _, name in shown(listing) if each == split]
        assert names == sorted(names)


def test_half_of_each_class_tests_as_in_fall_2009(tmp_path):
    source = laid_out(tmp_path / "s", CLASSES)
    listing = list_source(source, HALVES)
    assert listing.choices == {"split": "half", "seed": 0}
    classes = Counter((split, name) for split, name, _ in shown(listing))
    assert set(classes.values()) == {10} and len(classes) == 6
    drawn = sorted((hashlib.sha256(f"0 c1/{k:02}.png".encode()).digest(), k) for k in range(20))
    expected = sorted(f"{k:02}.png" for _, k in drawn[:10])
    assert [name for _, wnid, name in names_only(listing, "val") if wnid == "c1"] == expected
    # Another class, and photos of another class, change nothing; an odd one is for training.
    files = CLASSES | {"new/1.png": b"x", "c2/z.png": b"x"}
    more = list_source(laid_out(tmp_path / "t", files), HALVES)
    assert [each for each in shown(more) if each[1] in ("c0", "c1")] == [
        each for each in shown(listing) if each[1] in ("c0", "c1")
    ]
    counts = Counter((split, name) for split, name, _ in shown(more))
    assert (counts["train", "c2"], counts["val", "c2"], counts["val", "new"]) == (11, 10, 0)
    with refused("needs a class with two photos"):
        list_source(laid_out(tmp_path / "u", {"a/x": b"x", "b/x": b"x"}), HALVES)
    with refused("exclude each other"):
        list_source(source, Options(val_share=0.1, halves=True))


@pytest.mark.parametrize("drawing", [{"val_share": 0.5}, {"halves": True}])
def test_flat_photos_with_labels_are_drawn(tmp_path, drawing):
    source = laid_out(tmp_path / "s", {f"{k}.png": photo(k) for k in range(12)})
    rows = "".join(f"{k}.png {('cat', 'dog')[k % 2]}\n" for k in range(12))
    labels = put(source / "labels.txt", rows.encode())  # among the photos
    listing = list_source(source, Options(labels, **drawing))
    assert listing.class_ids == ("cat", "dog") and listing.counts() == {"train": 6, "val": 6}
    assert all(
        name == ("cat", "dog")[int(path.partition(".")[0]) % 2] for _, name, path in shown(listing)
    )


# --- names and order


def test_a_class_may_be_called_train(tmp_path):
    files = {f"{name}/{k}.png": b"x" for name in ("car", "train") for k in "12"}
    listing = list_source(laid_out(tmp_path / "s", files), Options(val_share=0.5))
    assert listing.class_ids == ("car", "train") and listing.counts() == {"train": 2, "val": 2}


def test_names_that_look_alike_or_control_a_terminal_are_escaped(tmp_path):
    files = {f"train/{name}/x": b"x" for name in ("é", "b\x1b[2J")} | {"val/e\u0301/x": b"x"}
    with pytest.raises(ValueError, match=r"lacks the class 'e\\u0301' of val") as error:
        list_source(laid_out(tmp_path / "s", files))
    assert str(error.value).isprintable()
    assert [printable(name) for name in ("é", "e\u0301", "猫", "\u1112\u1161", "a\nb\udce9")] == [
        "é", r"e\u0301", "猫", r"\u1112\u1161", r"a\nb\udce9",
    ]  # fmt: skip


def test_names_that_are_no_unicode_can_be_stored(tmp_path):
    files = {"caf\udce9/x": b"x", "tea/x": b"x", "tea/y": b"", "caf\udce9/z": b"x"}
    source = put(tmp_path / "x.tar", tar_of(files))
    for options in (Options(val_share=0.4), HALVES):
        ids = list_source(source, options).class_ids
        assert ids == ("caf\\udce9", "tea") and all(name.encode() for name in ids)


def test_val_is_preferred_to_test_and_photos_without_classes_are_not_taken(tmp_path):
    files = class_folders() | {"test/a/x.png": photo(1)}
    assert names_only(list_source(laid_out(tmp_path / "s", files))) == WANTED
    files = class_folders(val=0) | {"test/x.png": photo(1)}
    with refused("no folder 'val'"):
        list_source(laid_out(tmp_path / "t", files))


def test_everything_but_the_place_decides_the_digest():
    found = Found("a/x.png", "/one/a/x.png", 0, 10, 5)
    listing = Listing("k", "n", ("a", "b"), ("A", "B"), [Photo("train", 0, found)])
    changes = [
        {"name": "a/y.png"}, {"name": "a/\udce9.png"}, {"offset": 1}, {"size": 11}, {"stamp": 6},
        {"problem": "empty file"},
    ]  # fmt: skip
    photos = [Photo("train", 0, found._replace(**each)) for each in changes]
    photos += [Photo("val", 0, found), Photo("train", 1, found)]
    listings = [dataclasses.replace(listing, photos=[photo]) for photo in photos]
    for change in ({"kind": "x"}, {"class_ids": ("a", "c")}, {"class_names": ("A", "C")}):
        listings.append(dataclasses.replace(listing, **change))
    digests = {listing.digest(), *(each.digest() for each in listings)}
    assert len(digests) == 1 + len(listings) == 12
    moved = [Photo("train", 0, found._replace(path="/two/a/x.png"))]
    assert dataclasses.replace(listing, photos=moved).digest() == listing.digest()


NESTED = ["b/x", "a-b/y", "a/z/deep", "a/é", "a/.hidden/file", "a/z.jpg", "loose", ".DS_Store",
          "a/z/._deep"]  # fmt: skip


@pytest.mark.parametrize("packed", PACKED)
def test_folders_and_archives_give_the_same_tree(tmp_path, packed):
    files = {name: b"x" for name in reversed(NESTED)}
    if packed:  # harmless, since names are no paths: hidden, or as below the top
        files |= {"../0": b"x", "a/../../0": b"x", "/b/absolute": b"x"}
    tree = open_tree(source_of(tmp_path / "t", files, packed))
    assert tree.folders == ["a", "a-b", "b"]
    assert [each.name for each in tree.loose] == list(tree.top()) == ["loose"]
    # As a walk through folders goes: "z/deep" before "z.jpg", though "." is less than "/".
    assert [each.name for each in tree.below("a").files] == ["a/z/deep", "a/z.jpg", "a/é"]
    absolute = ["b/absolute"] if packed else []
    assert [each.name for each in tree.files][4:] == [*absolute, "b/x", "loose"]
    assert [each.name for each in tree.below("a").below("z").loose] == ["a/z/deep"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX links")
def test_links_are_followed_and_rings_end(tmp_path):
    put(tmp_path / "elsewhere/x.png", b"x")
    folder = laid_out(tmp_path / "top", {"1.png": b""})
    for name, to in (("ring", folder), ("twice", folder), ("nowhere", "gone"), ("self", "self")):
        (folder / name).symlink_to(to)
    for name in ("train", "val"):  # the same photos twice
        (folder / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    os.mkfifo(folder / "pipe")
    assert {each.name: each.problem for each in open_tree(folder).files} == {
        "1.png": "empty file",
        "nowhere": "a link to nowhere",
        "pipe": "not an ordinary file",
        "self": "a link to nowhere",
        "train/x.png": "",
        "val/x.png": "",
    }
    with refused("neither a folder nor an ordinary file"):
        open_tree(folder / "pipe")


# --- ILSVRC, and labels in a file


def test_classes_have_the_names_of_a_list_beside_them(tmp_path):
    laid_out(tmp_path / "s", class_folders())
    put(tmp_path / "LOC_synset_mapping.txt", f"{IDS[1]} tench, Tinca tinca\n".encode())
    assert list_source(tmp_path / "s").class_names == (IDS[0], "tench, Tinca tinca", IDS[2])


@pytest.fixture
def solution(tmp_path):
    """What the four validation photos of `ilsvrc_archives` show, as CSV."""
    rows = [f"ILSVRC2012_val_{n:08},{w} 0 0 1 1" for n, w in enumerate(ilsvrc_archives()[2], 1)]
    text = "\n".join(["ImageId,PredictionString", *rows])
    return put(tmp_path / "LOC_val_solution.csv", text.encode())


@pytest.mark.parametrize("train_packed", [False, True])
@pytest.mark.parametrize("val_packed", [False, True])
def test_ilsvrc(tmp_path, solution, train_packed, val_packed):
    train, val, of_val = ilsvrc_archives()
    files = {"ILSVRC2012_img_train.tar": train, "ILSVRC2012_img_val.tar": val}
    if not train_packed:
        del files["ILSVRC2012_img_train.tar"]
        files |= {f"train/{w}/{w}_{k}.JPEG": photo(k) for w in WNIDS for k in range(3)}
    if not val_packed:
        del files["ILSVRC2012_img_val.tar"]
        files |= {f"val/ILSVRC2012_val_{k + 1:08}.JPEG": photo(k) for k in range(4)}
    listing = list_source(laid_out(tmp_path, files))
    train_wanted = [("train", w, f"{w}_{k}.JPEG") for w in IDS for k in range(3)]
    val_wanted = [("val", w, f"ILSVRC2012_val_{n:08}.JPEG") for n, w in enumerate(of_val, 1)]
    assert names_only(listing) == train_wanted + val_wanted
    assert listing.notes[0].startswith(f"labels: {str(solution)!r}, colu")
    assert f"'ILSVRC2012_val_00000001' is '{of_val[0]}'" in listing.notes[0]
    assert len(listing.notes) == 1


def test_kaggles_folders(tmp_path, solution):
    names = [*(f"train/{w}/x.JPEG" for w in WNIDS), "val/ILSVRC2012_val_00000002.JPEG",
             "test/ILSVRC2012_test_00000001.JPEG"]  # fmt: skip
    files = {f"ILSVRC/Data/CLS-LOC/{name}": photo(1) for name in names}
    listing = list_source(laid_out(tmp_path, files | {"ILSVRC/Annotations/x.xml": b""}))
    assert listing.counts() == {"train": 3, "val": 1}
    assert listing.notes[1] == "note: 4 labels for 1 photos"


FLAT = {"train/cat/x.png": b"x", "train/dog/x.png": b"x", "val/a.png": b"x"}


@pytest.mark.parametrize("packed", PACKED)
def test_a_flat_val_with_labels_given(tmp_path, packed):
    source = source_of(tmp_path / "s", FLAT | {"val/b.png": b"x"}, packed)
    labels = put(tmp_path / "l.txt", b"b.png cat\na.png dog\n")
    assert shown(list_source(source, Options(labels)))[2:] == [
        ("val", "dog", "val/a.png"),
        ("val", "cat", "val/b.png"),
    ]


@pytest.mark.parametrize(
    "labels, message",
    [
        (None, "labels are needed"),
        (b"b.png cat\n", "no label for 'val/a.png'"),
        (b"a.png emu\n", "of the class 'emu', which is not in 'train'"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, labels, message):
    source = laid_out(tmp_path / "s", FLAT)
    given = put(tmp_path / "l.txt", labels) if labels else None
    with refused(message):
        list_source(source, Options(given))


# --- what cannot be used


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
        ({"train/a/x": b"", "val/a/x": b"", "val/c/x": b""}, "train lacks the class 'c' of val"),
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
@pytest.mark.parametrize("packed", PACKED[:2])
def test_what_cannot_be_prepared_is_explained_in_one_line(tmp_path, files, message, packed):
    source = source_of(tmp_path / "s", files, packed)
    with refused(message):
        list_source(source)


def test_an_empty_class_folder(tmp_path):
    laid_out(tmp_path, class_folders())
    (tmp_path / "train" / "emu").mkdir()
    (tmp_path / "val" / "emu").mkdir()
    with refused("train/emu' is empty"):
        list_source(tmp_path)


@pytest.mark.parametrize(
    "inside, options, message",
    [
        ("", {"val_share": 0.2}, "has its own val: leave out --val-share"),
        ("", {"halves": True}, "has its own val: leave out --split half"),
        ("", {"labels": "l.txt"}, "val has class folders: leave out --labels"),
        *(
            ("", {"val_share": share}, "--val-share must be between 0 and 1")
            for share in (0.0, 1.0, -0.1, float("nan"))
        ),
        ("", {"seed": -1}, "seed -1: must be from 0 to"),
        ("train", {"val_share": 0.01}, "is 0: it leaves none to validate with"),
        ("train", {"val_share": 0.99}, "is 9: it leaves none to train with"),
    ],
)
def test_options_that_do_not_fit_the_source(tmp_path, inside, options, message):
    source = laid_out(tmp_path / "s", class_folders())
    with refused(message):
        list_source(source / inside, Options(**options))


@pytest.mark.parametrize(
    "name, message",
    [
        ("gone", "no such file or folder"),
        ("x.txt", "not a tar archive; known"),
        ("s.tar.gz", "unpacks to over 5,000 bytes: unpack it, and give the folder"),
        ("half.tar", "truncated"),
    ],
)
def test_sources_that_are_no_folder_or_tar(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr("tinyconv.data.archives.MAX_UNPACKED", 5000)
    packed = source_of(tmp_path / "s", class_folders(), ".tar.gz")
    put(tmp_path / "half.tar", gzip.decompress(packed.read_bytes())[:5000])
    put(tmp_path / "x.txt", b"hello\n" * 200)
    with refused(message):
        list_source(tmp_path / name)
