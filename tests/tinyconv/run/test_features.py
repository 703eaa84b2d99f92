"""Vectors of a layer for each photo, and which of them are near each other."""

import h5py
import numpy as np
import pytest

from tinyconv import alexnet
from tinyconv.data import synthetic
from tinyconv.data.augment import Augment
from tinyconv.recipes import RECIPES
from tinyconv.run.checkpoint import save_weights
from tinyconv.run.features import features, nearest
from tinyconv.tools import command_line


@pytest.fixture(scope="module")
def photos():
    return synthetic(2, 1, 73)[0]


@pytest.fixture
def net():
    return alexnet(10, 0.05, 64, "robust", seed=1)


def augment():
    return Augment(np.zeros((73, 73, 3), np.float32), 64, 32.0)


@pytest.mark.parametrize("kernels", ["fast", "simple"])
@pytest.mark.parametrize(
    ("layer", "last"), [("fc7", "drop7"), ("conv5", "relu5"), ("pool5", "pool5"), ("fc8", "fc8")]
)
def test_features_are_the_layers_output_after_its_activation(net, photos, layer, last, kernels):
    x = augment().centre(photos.images).copy()
    for each in net:  # the layers one by one
        x = each.forward(x, train=False)
        if each.name == last:
            expected = x.reshape(len(photos), -1).copy()
    net.to("cpu", kernels=kernels)
    found = features(net, photos, augment(), layer, batch_size=7)  # 20 = 7 + 7 + 6
    assert found.dtype == np.float32
    # Sums of up to some hundred terms in another order, in float32.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_an_unknown_layer_is_refused(net, photos):
    with pytest.raises(ValueError, match="no layer 'fc9'; there are conv1, "):
        features(net, photos, augment(), "fc9")


def test_nearest_is_by_euclidean_distance_and_the_first_of_equals():
    rng = np.random.default_rng(0)
    queries, others = rng.standard_normal((3, 5)), rng.standard_normal((9, 5))
    others[4] = others[2]
    distances = np.linalg.norm(queries[:, None] - others, axis=2)
    np.testing.assert_array_equal(
        nearest(queries, others, 4), np.argsort(distances, axis=1, kind="stable")[:, :4]
    )
    # By angle the first would be nearer.
    assert nearest(np.array([[1.0, 0]]), np.array([[9.0, 0], [1, 1]]), 1) == [[1]]


def test_the_command_writes_them(net, photos, tmp_path, capsys):
    recipe = dict(vars(RECIPES["robust"]))
    names = list(photos.class_names)
    settings = {"width": 0.05, "image_size": 64, "recipe": recipe, "class_names": names,
                "class_ids": names}  # fmt: skip
    save_weights(tmp_path / "net.h5", net, np.zeros((73, 73, 3), np.float32), settings)
    out = tmp_path / "fc7.h5"
    rest = "--layer", "fc7", "--device", "cpu"
    assert command_line.main(["features", str(tmp_path / "net.h5"), str(out), *rest]) == 0
    with h5py.File(out) as file:
        assert file["features"].shape == (len(file["labels"]), 204)
        assert [name.decode() for name in file["class_names"]] == names
        assert np.isfinite(file["features"][()]).all() and file["features"][()].any()
    assert "vectors of 204 numbers, fc7" in capsys.readouterr().out
    status = command_line.main(["features", str(tmp_path / "none.h5"), str(out), *rest])
    assert status == 2 and capsys.readouterr().err.count("\n") == 1
