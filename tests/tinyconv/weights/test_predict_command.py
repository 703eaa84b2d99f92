"""`python -m tinyconv predict`, with the net in the package and others."""

import re

import numpy as np
import pytest
from photo_bytes import noisy_jpeg, put

from tinyconv import load_model
from tinyconv.run.checkpoint import PACKAGED
from tinyconv.tools.command_line import main


def test_the_net_in_the_package_answers(tmp_path, capsys):
    photo = put(tmp_path / "photo.jpg", noisy_jpeg(width=120, height=100))
    assert main(["predict", str(photo), str(tmp_path / "none.jpg")]) == 2
    printed = capsys.readouterr()
    assert "none.jpg: No such file" in printed.err and len(printed.err.splitlines()) == 1
    found = re.findall(r"^ +([\d.]+)%  (.+)$", printed.out, re.M)
    expected = load_model().predict(photo)
    assert [name for _, name in found] == [name for name, _ in expected] and len(found) == 5
    assert float(found[0][0]) == pytest.approx(100 * expected[0][1], abs=0.06)


def test_the_net_in_the_package_is_small_and_says_what_it_is():
    assert PACKAGED.stat().st_size < 3_000_000
    model = load_model()
    assert len(model.class_names) == 10 and "golf ball" in model.class_names
    assert "benchmarks/packaged_net.py" in PACKAGED.with_suffix(".txt").read_text("utf-8")
    grey = np.full((1, 110, 110, 3), 120, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (1, 110, 110, 3), np.uint8)
    found = [model.probabilities(each)[0] for each in (grey, noise)]
    assert np.abs(found[0] - found[1]).max() > 0.05 and max(map(np.max, found)) < 1


def test_features_are_written(tmp_path, capsys):
    photos = [put(tmp_path / f"{i}.jpg", noisy_jpeg(seed=i)) for i in range(3)]
    out = tmp_path / "vectors.npz"
    command = ["predict", *map(str, photos), "--features", "fc7", "--out", str(out)]
    assert main(command) == 0
    with np.load(out) as file:
        assert list(file["names"]) == [str(photo) for photo in photos]
        np.testing.assert_array_equal(file["vectors"], load_model().features(photos, "fc7"))
    assert main([*command[:4], "--features", "fc9"]) == 2
    assert "no layer 'fc9'; there are conv1" in capsys.readouterr().err
