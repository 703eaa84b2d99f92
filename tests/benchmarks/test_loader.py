"""benchmarks/loader.py, on a store so small that its figures mean nothing."""

import importlib.util
import re

import loader
import pytest
from stores import photo_sets, write_store

TINY = ["--batch-size", "4", "--rounds", "2", "--threads", "2", "--workers", "0"]


@pytest.fixture
def torch_there(request, monkeypatch):
    """Whether the benchmark finds PyTorch: as it is, or not."""
    if not request.param:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return request.param and importlib.util.find_spec("torch") is not None


@pytest.mark.parametrize("torch_there", [True, False], indirect=True)
def test_a_table_with_a_row_for_each_contestant(torch_there, capsys):
    assert loader.main(["--rows", "18", "--size", "6", *TINY]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "18 images of 6×6×3, batch 4, shuffled, 2 rounds"
    assert "cores" in lines[1]
    names = ["Loader, 2 threads"]
    if torch_there:
        names += ["DataLoader, h5py, 0 workers", "DataLoader, memory map, 0 workers"]
        assert re.fullmatch(r"Ours is [0-9.]+ times as fast as the fastest DataLoader.", lines[-1])
    else:
        assert err == "PyTorch is not installed: timing ours alone\n"
    table = [line for line in lines if line.startswith("| ") and "images/s" not in line]
    assert [row.split(" | ")[0] for row in table] == [f"| {name}" for name in names]
    assert all(re.fullmatch(r"\|[^|]+\| [0-9,]+ \| [0-9,]+ to [0-9,]+ \| .+ \|", r) for r in table)
    assert table[0].endswith("| 1.0 |")


def test_a_store_of_ones_own_is_read_and_left_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    path = write_store(tmp_path / "photos.h5", photo_sets(train=9))
    before = path.read_bytes()
    assert loader.main(["--data", str(path), *TINY]) == 0
    assert capsys.readouterr().out.startswith("9 images of 5×5×3")
    assert path.read_bytes() == before


def test_both_ways_of_reading_are_checked(tmp_path, monkeypatch):
    path = write_store(tmp_path / "photos.h5", photo_sets())
    with loader.PhotoStore(path) as store:
        loader.check(store)
        store.train.images = store.train.images[::-1]
        with pytest.raises(AssertionError):
            loader.check(store)
