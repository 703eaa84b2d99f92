"""One door: drawn photos, folders and prepared files look alike behind it."""

import numpy as np
import pytest
from photo_bytes import photo_folder, put
from stores import rows

from tinyconv.data.open_data import open_data
from tinyconv.data.prepare import prepare
from tinyconv.data.statistics import Statistics
from tinyconv.data.store import StoreError


@pytest.fixture
def folder(tmp_path):
    return photo_folder(tmp_path / "f", train=5, val=2)


@pytest.fixture
def prepared(folder, tmp_path):
    """The same photos as `folder`, in a file, with names of the classes."""
    put(folder / "words.txt", b"n00000001 A\nn00000002 B\n")
    for split in ("train", "val"):
        (folder / split / "dark").rename(folder / split / "n00000001")
        (folder / split / "light").rename(folder / split / "n00000002")
    prepare(folder, tmp_path / "f.h5", size=32)
    return tmp_path / "f.h5"


def test_a_folder_and_the_file_made_of_it_give_the_same(folder, prepared):
    put(folder / "train" / "n00000001" / "notes.txt", b"no photo")
    with open_data(folder, 32) as one, open_data(prepared, None) as two:
        assert len(one.train) == len(two.train) == 10 and len(one.val) == len(two.val) == 4
        for a, b in ((one.train, two.train), (one.val, two.val)):
            np.testing.assert_array_equal(a.labels, b.labels)
            np.testing.assert_array_equal(rows(a, [3, 0, 2]), rows(b, [3, 0, 2]))
        for name in ("mean_image", "eigenvalues", "eigenvectors"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert one.class_ids == one.class_names == two.class_ids == ["n00000001", "n00000002"]
        assert two.class_names == ["A", "B"]
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
