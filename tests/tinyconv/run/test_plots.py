"""The pictures of filters."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tinyconv.run.plots import plot_column_filters, plot_filters


@pytest.mark.parametrize("count", [2, 3, 40])
def test_a_picture_has_both_columns_and_is_the_same_each_time(count, tmp_path):
    weight = np.random.default_rng(0).normal(size=(count, 11, 11, 3)).astype(np.float32)
    for name in ("a.png", "b.png"):
        plot_column_filters(weight, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG" and picture.width >= 400


def test_a_picture_of_all_filters_says_how_coarse_they_are(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(Figure, "suptitle", lambda self, text, **_: titles.append(text))
    weight = np.random.default_rng(0).normal(size=(20, 11, 11, 3))
    plot_filters(weight, tmp_path / "noise.png")
    plot_filters(np.ones((1, 12, 12, 3)), tmp_path / "one.png")
    assert titles == [
        "conv1: 20 filters of 11×11, 38% low frequencies (white noise: 37%)",
        "conv1: 1 filters of 12×12, 100% low frequencies (white noise: 34%)",
    ]
    with Image.open(tmp_path / "noise.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000
