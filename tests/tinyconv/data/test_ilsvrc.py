"""Labels in the forms in which they are published, and what can be wrong with them."""

import gzip
import io
from random import Random

import numpy as np
import pytest
from photo_bytes import put
from tar_bytes import END, WNIDS, header, ilsvrc_archives, tar_of

from tinyconv.data import ilsvrc
from tinyconv.data.ilsvrc import GROUND_TRUTH, read_class_names, read_labels
from tinyconv.data.listing import Found, SourceError

IDS = sorted(WNIDS)
NUMBERS = {2: WNIDS[0], 3: WNIDS[1], 1: WNIDS[2]}  # not the sorted order, as in the devkit
WORDS = {WNIDS[0]: "tench, Tinca tinca", WNIDS[1]: "springer", WNIDS[2]: "chain saw"}


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


def devkit(lines: str = "3\n1\n2\n2\n") -> dict[str, bytes]:
    inside = "ILSVRC2012_devkit_t12/data/"
    return {inside + GROUND_TRUTH: lines.encode(), inside + "meta.mat": meta_mat()}


EXPECTED = [WNIDS[1], WNIDS[2], WNIDS[0], WNIDS[0]]


def shown_by(labels):
    return [labels.of(f"val/ILSVRC2012_val_{number:08}.JPEG") for number in range(1, 5)]


def test_the_packed_devkit(tmp_path):
    put(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", gzip.compress(tar_of(devkit())))
    labels = read_labels(None, [tmp_path], IDS)
    assert shown_by(labels) == EXPECTED and labels.class_names == WORDS
    assert labels.of("ILSVRC2012_val_00000005.JPEG") is None


@pytest.mark.parametrize("given", ["ILSVRC2012_devkit_t12", None])
def test_the_unpacked_devkit(tmp_path, given):
    for name, content in devkit().items():
        put(tmp_path / name, content)
    labels = read_labels(given and tmp_path / given, [tmp_path], IDS)
    assert shown_by(labels) == EXPECTED


def test_the_solution_as_csv(tmp_path):
    rows = [f"ILSVRC2012_val_{n:08},{wnid} 1 2 3 4 " for n, wnid in enumerate(EXPECTED, 1)]
    text = "ImageId,PredictionString\r\n" + "\r\n".join(reversed(rows)) + "\r\n"
    put(tmp_path / "LOC_val_solution.csv", text.encode("utf-8-sig"))
    assert shown_by(read_labels(None, [tmp_path / "nowhere", tmp_path], IDS)) == EXPECTED


@pytest.mark.parametrize("indices", [False, True])
def test_two_columns(tmp_path, indices):
    rows = [
        f"some/where/ILSVRC2012_val_{n:08}.JPEG {IDS.index(w) if indices else w}"
        for n, w in enumerate(EXPECTED, 1)
    ]
    path = put(tmp_path / "val.txt", "\n".join(rows).encode())
    assert shown_by(read_labels(path, [], IDS)) == EXPECTED
    assert shown_by(read_labels(None, [tmp_path], IDS)) == EXPECTED


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("l.txt", b"\xff\xfe\x00", "not text in UTF-8"),
        ("d.tar.gz", gzip.compress(tar_of({"readme": b"x"}), mtime=0), "holds no ILSVRC2012_val"),
        ("d.tar.gz", gzip.compress(header(b"x", b"00000002000\0"), mtime=0), "truncated"),
        ("d.tar.gz", gzip.compress(END, mtime=0)[:-4], "truncated"),
    ],
)
def test_bad_labels_are_refused_in_one_line(tmp_path, name, content, message):
    with pytest.raises(SourceError, match=message) as error:
        read_labels(put(tmp_path / name, content), [tmp_path], IDS)
    assert "\n" not in str(error.value)


def test_numbers_that_the_table_does_not_have(tmp_path):
    for lines, shown in (("3\n4\n", "line 2 .* b'4'.*1 to 3"), ("0\n", "line 1"), ("x\n", "b'x'")):
        files = devkit(lines)
        path = put(tmp_path / "d.tar.gz", gzip.compress(tar_of(files)))
        with pytest.raises(SourceError, match=shown):
            read_labels(path, [], IDS)


@pytest.mark.parametrize("cut", [0, 50, 200, 400])
def test_a_damaged_table(tmp_path, cut):
    files = devkit()
    files["ILSVRC2012_devkit_t12/data/meta.mat"] = meta_mat()[:cut]
    path = put(tmp_path / "d.tar.gz", gzip.compress(tar_of(files)))
    with pytest.raises(SourceError, match="meta.mat") as error:
        read_labels(path, [], IDS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["d.tar.gz", "meta.mat", "val.txt", "LOC_val_solution.csv"])
def test_corruption_is_one_line_or_harmless(tmp_path, name):
    rows = [f"ILSVRC2012_val_{n:08}.JPEG,{wnid} 1 2 3 4" for n, wnid in enumerate(EXPECTED, 1)]
    whole = {
        "d.tar.gz": gzip.compress(tar_of(devkit()), mtime=0),
        "meta.mat": meta_mat(),
        "val.txt": "\n".join(rows).replace(",", " ").replace(" 1 2 3 4", "").encode(),
        "LOC_val_solution.csv": "\n".join(["ImageId,PredictionString", *rows]).encode(),
    }[name]
    random, refused = Random(0), 0
    for _ in range(6 if name == "meta.mat" else 60):  # a process each
        data = bytearray(whole)
        for _ in range(random.randint(1, 4)):
            data[random.randrange(len(data))] = random.randrange(256)
        if name == "meta.mat":
            files = devkit() | {"ILSVRC2012_devkit_t12/data/meta.mat": bytes(data)}
            path = put(tmp_path / "d.tar.gz", gzip.compress(tar_of(files), 1))
        else:
            path = put(tmp_path / name, bytes(data))
        try:
            read_labels(path, [tmp_path], IDS)
        except SourceError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 1


def test_without_scipy_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    put(tmp_path / "ILSVRC2012_devkit_t12/data/meta.mat", b"not read")
    put(tmp_path / "ILSVRC2012_devkit_t12/data" / GROUND_TRUTH, b"1\n")
    with pytest.raises(SourceError, match="pip install scipy; or give LOC_val_solution.csv"):
        read_labels(None, [tmp_path], IDS)


def test_without_any_labels_it_says_what_to_put_where(tmp_path):
    with pytest.raises(SourceError, match="devkit_t12.tar.gz or LOC_val_solution.csv into '.*'"):
        read_labels(None, [tmp_path], IDS)
    with pytest.raises(SourceError, match="no such file"):
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
    classes = ilsvrc.train_classes(Found("t.tar", str(path), 0, len(train), 0))
    assert sorted(classes) == IDS
    names = [each.name for each in classes[IDS[0]]]
    assert names == [f"t.tar/{IDS[0]}.tar/{IDS[0]}_{k}.JPEG" for k in range(3)]
    path = put(tmp_path / "v.tar", val)
    with pytest.raises(SourceError, match="not the training archive"):
        ilsvrc.train_classes(Found("v.tar", str(path), 0, len(val), 0))
