"""Labels in the forms in which they are published, and what can be wrong with them."""

import gzip
import io

import numpy as np
import pytest
from photo_bytes import corrupted, laid_out, put, refused
from tar_bytes import END, WNIDS, header, ilsvrc_archives, tar_of

from tinyconv.data import ilsvrc
from tinyconv.data.ilsvrc import GROUND_TRUTH, read_class_names, read_labels
from tinyconv.data.listing import Found, SourceError

IDS = sorted(WNIDS)
NUMBERS = {2: WNIDS[0], 3: WNIDS[1], 1: WNIDS[2]}  # not the sorted order, as in the devkit
WORDS = {WNIDS[0]: "tench, Tinca tinca", WNIDS[1]: "springer", WNIDS[2]: "chain saw"}
EXPECTED = [WNIDS[1], WNIDS[2], WNIDS[0], WNIDS[0]]
INSIDE = "ILSVRC2012_devkit_t12/data/"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def meta_mat() -> bytes:
    """meta.mat with three leaves and something above them."""
    scipy_io = pytest.importorskip("scipy.io")
    fields = ("ILSVRC2012_ID", "WNID", "words", "num_children")
    table = np.zeros((4, 1), [(field, object) for field in fields])
    rows = [(number, wnid, WORDS[wnid], 0) for number, wnid in NUMBERS.items()]
    for place, row in enumerate([*rows, (4, "n00001740", "entity", 3)]):
        table[place, 0] = row
    stream = io.BytesIO()
    scipy_io.savemat(stream, {"synsets": table})
    return stream.getvalue()


def devkit(lines: str = "3\n1\n2\n2\n", meta: bytes | None = None) -> dict[str, bytes]:
    meta = meta_mat() if meta is None else meta
    return {INSIDE + GROUND_TRUTH: lines.encode(), f"{INSIDE}meta.mat": meta}


def packed(files: dict[str, bytes]) -> bytes:
    return gzip.compress(tar_of(files), 1, mtime=0)


def solution() -> bytes:
    rows = [f"ILSVRC2012_val_{n:08},{wnid} 1 2 3 4 " for n, wnid in enumerate(EXPECTED, 1)]
    return "\r\n".join(["ImageId,PredictionString", *reversed(rows), ""]).encode("utf-8-sig")


def two_columns(names=lambda wnid: wnid) -> bytes:
    rows = [f"some/where/ILSVRC2012_val_{n:08}.JPEG {names(w)}" for n, w in enumerate(EXPECTED, 1)]
    return "\n".join(rows).encode()


@pytest.mark.parametrize(
    "name, files",
    [
        (DEVKIT, lambda: {DEVKIT: packed(devkit())}),
        ("ILSVRC2012_devkit_t12", devkit),
        ("LOC_val_solution.csv", lambda: {"LOC_val_solution.csv": solution()}),
        ("val.txt", lambda: {"val.txt": two_columns()}),
        ("val.txt", lambda: {"val.txt": two_columns(IDS.index)}),
    ],
)
def test_labels_that_are_given_or_found(tmp_path, name, files):
    laid_out(tmp_path / "here", files())
    for given, near in ((tmp_path / "here" / name, []), (None, ["nowhere", "here"])):
        labels = read_labels(given, [tmp_path / each for each in near], IDS)
        shown = [labels.of(f"val/ILSVRC2012_val_{number:08}.JPEG") for number in range(1, 6)]
        assert shown == [*EXPECTED, None]
        assert labels.class_names == (WORDS if "devkit" in name else {})


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("l.txt", lambda: b"\xff\xfe\x00", "not text in UTF-8"),
        ("d.tar.gz", lambda: packed({"readme": b"x"}), "holds no ILSVRC2012_val"),
        ("d.tar.gz", lambda: gzip.compress(header(b"x", b"00000002000\0")), "truncated"),
        ("d.tar.gz", lambda: gzip.compress(END)[:-4], "truncated"),
        ("d.tar.gz", lambda: packed(devkit("3\n4\n")), "line 2 .* b'4'.*1 to 3"),
        ("d.tar.gz", lambda: packed(devkit("0\n")), "line 1"),
        ("d.tar.gz", lambda: packed(devkit("x\n")), "b'x'"),
        *(
            ("d.tar.gz", lambda cut=cut: packed(devkit(meta=meta_mat()[:cut])), "meta.mat")
            for cut in (0, 50, 200, 400)
        ),
    ],
)
def test_bad_labels_are_refused_in_one_line(tmp_path, name, content, message):
    path = put(tmp_path / name, content())
    with refused(message):
        read_labels(path, [tmp_path], IDS)


@pytest.mark.parametrize(
    "name, cases, whole",
    [
        ("d.tar.gz", 60, lambda: packed(devkit())),
        ("meta.mat", 6, meta_mat),  # a process each
        ("val.txt", 60, two_columns),
        ("LOC_val_solution.csv", 60, solution),
    ],
)
def test_corruption_is_one_line_or_harmless(tmp_path, name, cases, whole):
    refusals = 0
    for data in corrupted(whole(), cases, changes=4):
        if name == "meta.mat":
            path = put(tmp_path / "d.tar.gz", packed(devkit(meta=data)))
        else:
            path = put(tmp_path / name, data)
        try:
            read_labels(path, [tmp_path], IDS)
        except SourceError as error:
            assert "\n" not in str(error)
            refusals += 1
    assert refusals > 1


def test_without_scipy_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    laid_out(tmp_path, devkit("1\n", b"not read"))
    with refused("pip install scipy; or give LOC_val_solution.csv"):
        read_labels(None, [tmp_path], IDS)


def test_without_any_labels_it_says_what_to_put_where(tmp_path):
    with refused("devkit_t12.tar.gz or LOC_val_solution.csv into '.*'"):
        read_labels(None, [tmp_path], IDS)
    with refused("no such file"):
        read_labels(tmp_path / "gone.txt", [tmp_path], IDS)


@pytest.mark.parametrize("name, between", [("synset_words.txt", " "), ("words.txt", "\t")])
def test_names_of_classes(tmp_path, name, between):
    text = "".join(f"{wnid}{between}{words}\n" for wnid, words in WORDS.items())
    put(tmp_path / name, f"{text}\nrubbish\n".encode())
    assert read_class_names([tmp_path / "nowhere", tmp_path]) == WORDS
    assert read_class_names([tmp_path / "nowhere"]) == {}


def test_the_training_archive(tmp_path):
    train, val, _ = ilsvrc_archives()
    path = put(tmp_path / "t.tar", train)
    tree = ilsvrc.train_tree(Found("t.tar", str(path), 0, len(train), 0))
    assert tree.folders == IDS
    names = [each.name for each in tree.below(IDS[0]).files]
    assert names == [f"t.tar/{IDS[0]}/{IDS[0]}_{k}.JPEG" for k in range(3)]
    empty = put(tmp_path / "e.tar", tar_of({f"{wnid}.tar": END for wnid in IDS}))
    assert ilsvrc.train_tree(Found("e.tar", str(empty), 0, empty.stat().st_size, 0)).folders == IDS
    path = put(tmp_path / "v.tar", val)
    with refused("not the training archive"):
        ilsvrc.train_tree(Found("v.tar", str(path), 0, len(val), 0))
