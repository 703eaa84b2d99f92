"""One door: drawn photos, folders and prepared files look alike behind it."""

import numpy as np
import pytest
from photo_bytes import encoded, put
from PIL import Image

from tinyconv.data import read_folder
from tinyconv.data.open_data import open_data
from tinyconv.data.statistics import Statistics
from tinyconv.data.store import StoreError
from tinyconv.data.store_writer import StoreWriter


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for name in ("a", "b"):
            for k in range(count):
                noise = Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8))
                put(tmp_path / "f" / split / name / f"{k}.png", encoded(noise).getvalue())
    return tmp_path / "f"


@pytest.fixture
def prepared(folder, tmp_path):
    """The same photos as `folder`, in a file."""
    train, val, _ = read_folder(folder, 32)
    with StoreWriter(
        tmp_path / "f.h5", size=32, rows={"train": 10, "val": 4},
        class_ids=["a", "b"], class_names=["A", "B"], settings={},
    ) as writer:  # fmt: skip
        writer.write_rows("train", 0, train.images)
        writer.write_rows("val", 0, val.images)
        writer.finish({"train": train.labels, "val": val.labels})
    return tmp_path / "f.h5"


def test_a_folder_and_the_file_made_of_it_give_the_same(folder, prepared):
    put(folder / "train" / "a" / "notes.txt", b"no photo")
    with open_data(folder, 32) as one, open_data(prepared, None) as two:
        assert len(one.train) == len(two.train) == 10 and len(one.val) == len(two.val) == 4
        for a, b in ((one.train, two.train), (one.val, two.val)):
            np.testing.assert_array_equal(a.labels, b.labels)
            rows = [np.empty((3, 32, 32, 3), np.uint8) for _ in range(2)]
            ids = np.array([3, 0, 2])
            a.copy_rows(ids, rows[0]), b.copy_rows(ids, rows[1])
            np.testing.assert_array_equal(rows[0], rows[1])
        for name in ("mean_image", "eigenvalues", "eigenvectors"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert one.class_ids == one.class_names == ["a", "b"]
        assert two.class_ids == ["a", "b"] and two.class_names == ["A", "B"]
        assert [entry.path.name for entry in one.skipped] == ["notes.txt"] and not two.skipped
        assert "32×32 pixels" in one.source and "32×32 pixels" in two.source


def test_drawn_photos_have_their_statistics():
    with open_data(None, 40, seed=3) as data:
        statistics = Statistics(40)
        statistics.add(data.train.images)
        np.testing.assert_array_equal(data.mean_image, statistics.mean_image())
        np.testing.assert_array_equal(data.eigenvalues, statistics.eigenvalues)
        assert "drawn" in data.source and len(data.class_names) == 10


def test_what_does_not_fit_is_refused_and_the_file_closed(prepared, tmp_path):
    with pytest.raises(ValueError, match="squares of 32 pixels, and 64 are asked for"):
        open_data(prepared, 64)
    with pytest.raises(ValueError, match="--classes is for folders"):
        open_data(prepared, None, classes=1)
    with pytest.raises(ValueError, match="need a size"):
        open_data(None, None)
    with pytest.raises(ValueError, match="no such folder"):
        open_data(tmp_path / "absent", 32)
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(StoreError):
        open_data(tmp_path / "text.h5", None)
    prepared.unlink()  # on Windows this fails for an open file
