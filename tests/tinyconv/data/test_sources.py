"""Every layout that can be prepared, and a clear line for those that cannot."""

import gzip
from collections import Counter

import pytest
from photo_bytes import put
from tar_bytes import WNIDS, class_folders, ilsvrc_archives, photo, tar_of

from tinyconv.data.listing import SourceError
from tinyconv.data.sources import list_source

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


@pytest.mark.parametrize("above", ["", "one/"])
@pytest.mark.parametrize("packed", [False, True])
def test_train_and_val(tmp_path, above, packed):
    files = {above + name: content for name, content in class_folders().items()}
    files = {"readme.txt": b"x"} | dict(reversed(files.items()))
    source = put(tmp_path / "s.tar", tar_of(files)) if packed else laid_out(tmp_path / "s", files)
    listing = list_source(source)
    assert listing.class_ids == listing.class_names == IDS and names_only(listing) == WANTED
    assert listing.name == source.name and listing.choices == {} and listing.size == 256


def test_the_same_photos_give_the_same_digest_and_others_another(tmp_path):
    source = laid_out(tmp_path / "s", class_folders())
    digest = list_source(source).digest()
    assert list_source(source).digest() == digest
    changed = source / "train" / WNIDS[0] / "train_0.PNG"
    changed.write_bytes(photo(255))
    assert list_source(source).digest() != digest
    changed.rename(changed.with_name("train_00.PNG"))
    assert list_source(source).digest() != digest


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
    assert listing.notes == [f"labels: {str(tmp_path / 'LOC_val_solution.csv')!r}"]


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
    assert listing.notes[1] == "note: 4 labels, and 1 photos for them"


@pytest.mark.parametrize("packed", [False, True])
def test_a_flat_val_with_labels_given(tmp_path, packed):
    files = {f"train/{name}/x.png": photo(1) for name in ("cat", "dog")}
    files |= {"val/a.png": photo(2), "val/b.png": photo(3)}
    source = put(tmp_path / "s.tar", tar_of(files)) if packed else laid_out(tmp_path / "s", files)
    labels = put(tmp_path / "l.txt", b"b.png cat\na.png dog\n")
    assert shown(list_source(source, labels))[2:] == [
        ("val", "dog", "val/a.png"),
        ("val", "cat", "val/b.png"),
    ]


def test_labels_that_do_not_fit(tmp_path):
    files = {f"train/{name}/x.png": photo(1) for name in ("cat", "dog")} | {"val/a.png": b"x"}
    source = laid_out(tmp_path / "s", files)
    with pytest.raises(SourceError, match="labels are needed"):
        list_source(source)
    with pytest.raises(SourceError, match="no label for 'val/a.png'"):
        list_source(source, put(tmp_path / "l.txt", b"b.png cat\n"))
    with pytest.raises(SourceError, match="of the class 'emu', which 'train' has not"):
        list_source(source, put(tmp_path / "l.txt", b"a.png emu\n"))


def test_a_share_is_set_aside(tmp_path):
    files = {f"c{c}/{k:02}.png": bytes([c, k]) for c in range(3) for k in range(20)}
    source = laid_out(tmp_path / "s", files)
    listing = list_source(source, val_share=0.25)
    assert listing.counts() == {"train": 45, "val": 15}
    assert listing.choices == {"val_share": 0.25, "seed": 0}
    assert Counter(name.rpartition("/")[2] for _, _, name in shown(listing)) == Counter(
        name.rpartition("/")[2] for name in files
    )
    assert all(name.startswith(f"{wnid}/") for _, wnid, name in shown(listing))
    assert shown(list_source(source, val_share=0.25)) == shown(listing)
    assert shown(list_source(source, val_share=0.25, seed=1)) != shown(listing)
    packed = put(tmp_path / "s.tar", tar_of(dict(reversed(files.items()))))
    assert shown(list_source(packed, val_share=0.25)) == shown(listing)
    for split in ("train", "val"):  # in the order of the files, not of the draw
        names = [name for each, _, name in shown(listing) if each == split]
        assert names == sorted(names)


def test_photos_named_by_their_class(tmp_path):
    files = {f"photos/{w}_{k} it's.JPEG": photo(k) for k, w in enumerate(WNIDS)}
    files |= {"photos/readme.md": b"x"}
    listing = list_source(put(tmp_path / "p.tar", tar_of(files)), val_share=0.4)
    assert listing.class_ids == IDS and listing.counts() == {"train": 2, "val": 1}
    assert listing.notes == ["left out, no n######## in the name: 'photos/readme.md'"]


def test_flat_photos_with_labels_and_a_share(tmp_path):
    source = laid_out(tmp_path / "s", {f"{k}.png": photo(k) for k in range(10)})
    rows = "".join(f"{k}.png {('cat', 'dog')[k % 2]}\n" for k in range(10))
    labels = put(source / "labels.txt", rows.encode())  # among the photos
    listing = list_source(source, labels, val_share=0.3)
    assert listing.class_ids == ("cat", "dog") and listing.counts() == {"train": 7, "val": 3}
    assert all(name == ("cat", "dog")[int(path[0]) % 2] for _, name, path in shown(listing))


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "its folders: none; files beside them: 0; expected"),
        ({"x.txt": b"", "y.txt": b""}, "files beside them: 2; expected"),
        ({"train/a/x": b"", "train/b/x": b"", "test/a/x": b""}, "no 'val' .*'test', 'train'"),
        ({"val/a/x": b"", "val/b/x": b""}, "no 'train'"),
        ({"train/x.png": b"x", "val/a/x": b"x"}, "train has no class folders"),
        ({"train/a/x": b"x", "val/a/x": b"x"}, "photos of one class .'a'."),
        ({"train/a/x": b"", "train/b/x": b"", "val/a/x": b""}, "val lacks the class 'b'"),
        ({"train/a/x": b"", "val/a/x": b"", "val/c/x": b""}, "the class 'c' that 'train' has not"),
        ({"a/x": b"", "b/x": b"", "b/y": b""}, "3 files of 2 classes .'a' and 1 more.*--val-share"),
        ({"n1.tar": b"x", "n2.tar": b"x"}, "archive of archives: give the folder that holds"),
        ({"ILSVRC2012_img_train.tar": b"x"}, "no 'val'"),
        ({"ILSVRC2012_img_train.tar": b"", "val/a": b""}, "is an empty file"),
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
    with pytest.raises(SourceError, match="train has nothing of the class 'emu'"):
        list_source(tmp_path)


def test_options_that_do_not_fit_the_source(tmp_path):
    source = laid_out(tmp_path / "s", class_folders())
    with pytest.raises(SourceError, match="has its own val: leave out --val-share"):
        list_source(source, val_share=0.2)
    with pytest.raises(SourceError, match="val has class folders: leave out --labels"):
        list_source(source, labels=put(tmp_path / "l.txt", b"a b\n"))
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(SourceError, match="--val-share must lie between 0 and 1"):
            list_source(source, val_share=share)
    with pytest.raises(SourceError, match="is 0: it leaves none to validate with"):
        list_source(source / "train", val_share=0.01)
    with pytest.raises(SourceError, match="is 9: it leaves none to train with"):
        list_source(source / "train", val_share=0.99)


def test_sources_that_are_no_folder_or_tar(tmp_path):
    with pytest.raises(SourceError, match="no such file or folder"):
        list_source(tmp_path / "gone")
    with pytest.raises(SourceError, match="not a tar archive; expected"):
        list_source(put(tmp_path / "x.txt", b"hello\n" * 200))
    with pytest.raises(SourceError, match="is compressed .gzip."):
        list_source(put(tmp_path / "x.tar.gz", gzip.compress(tar_of(class_folders()))))
    with pytest.raises(SourceError, match="cut short"):
        list_source(put(tmp_path / "x.tar", tar_of(class_folders())[:5000]))


def test_names_that_are_no_unicode_can_be_stored(tmp_path):
    source = put(tmp_path / "x.tar", tar_of({"caf\udce9/x": b"x", "tea/x": b"x", "tea/y": b""}))
    ids = list_source(source, val_share=0.4).class_ids
    assert ids == ("caf\\udce9", "tea") and all(name.encode() for name in ids)
