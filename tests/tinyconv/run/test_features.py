"""Features: equal to the layers one by one, by both kernels, in every batch size."""

import h5py
import numpy as np
import pytest
from PIL import Image
from small import random_photos, saved_net

from tinyconv import alexnet
from tinyconv.data import synthetic
from tinyconv.data.augment import Augment
from tinyconv.run.features import features, nearest, output_of
from tinyconv.tools import command_line


@pytest.fixture
def net():
    return alexnet(5, width=0.05, image_size=64, recipe="robust", seed=3)


def expected(net, x, until):
    """Layer by layer, with the loops of the book."""
    for layer in net.layers:
        x = layer.forward(x, False)
        if layer.name == until:
            return np.array(x)


@pytest.mark.parametrize("kernels", ["fast", "simple"])
@pytest.mark.parametrize("layer, until", [("fc7", "drop7"), ("conv2", "relu2"), ("pool1", "pool1")])
def test_a_layer_and_what_follows_it(net, kernels, layer, until):
    net.to("cpu", kernels=kernels)
    x = np.random.default_rng(0).normal(size=(3, 64, 64, 3)).astype(np.float32)
    found = output_of(net, x, layer)
    np.testing.assert_allclose(found, expected(net, x, until), rtol=1e-4, atol=1e-5)
    assert found.any() and found.dtype == np.float32


def test_the_vectors_of_a_set_do_not_depend_on_the_batch_and_are_copies(net):
    photos = random_photos(7, size=73)
    augment = Augment(photos.mean_image(), 64, 32)
    whole = features(net, photos, augment, "fc7", batch_size=7)
    assert whole.shape == (7, net["fc7"].out_features)
    parts = features(net, photos, augment, "fc7", batch_size=3)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)  # BLAS blocks rows differently
    assert not np.array_equal(whole[0], whole[1])


def test_another_name_lists_the_layers(net):
    with pytest.raises(KeyError, match="no layer 'fc9'; there are conv1"):
        output_of(net, np.zeros((1, 64, 64, 3), np.float32), "fc9")


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


@pytest.mark.full
def test_the_command_writes_them(tmp_path, capsys):
    names = list(synthetic(2, 1, 73)[0].class_names)
    saved_net(tmp_path / "net.h5", names)
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


def test_without_a_run_the_net_in_the_package_answers(tmp_path, capsys):
    photos, out = synthetic(2, 1, 110)[1], tmp_path / "fc6.h5"
    for row, (image, label) in enumerate(zip(photos.images, photos.labels, strict=True)):
        for split in ("train", "val"):
            folder = tmp_path / "photos" / split / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{row}.png")
    rest = "--data", str(tmp_path / "photos"), "--layer", "fc6", "--device", "cpu"
    for first in ([], ["packaged"]):
        assert command_line.main(["features", *rest, *first, str(out)]) == 0
        with h5py.File(out) as file:
            assert file["features"].shape == (len(photos), 1024)
        out = tmp_path / "again.h5"
    for wrong in ([out], ["runs/001"], ["a", "b", "c.h5"]):  # one that exists, or none to write
        before = out.read_bytes()
        assert command_line.main(["features", *rest, *map(str, wrong)]) == 2
        assert out.read_bytes() == before and capsys.readouterr().err.count("\n") == 1
