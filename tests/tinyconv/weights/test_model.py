"""Trained nets in use: photos of every kind give the answers of the net by hand."""

import numpy as np
import pytest
from photo_bytes import noisy_jpeg, put
from PIL import Image

from layers import Conv2D, Flatten, Layer, Linear, LocalResponseNorm, MaxPool2D, Tanh
from tinyconv import Model, Sequential, alexnet, initialize, load_model, save_model
from tinyconv.data.photos import PhotoError, decode_square
from tinyconv.run.checkpoint import CheckpointError

NAMES = ["cat", "dog", "owl"]


def model(seed=0):
    net = alexnet(3, 0.05, 64, "robust", seed)
    mean = np.random.default_rng(1).uniform(90, 150, (73, 73, 3)).astype(np.float32)
    return Model(net, mean, NAMES, 32.0)


@pytest.fixture
def photo(tmp_path):
    return put(tmp_path / "photo.jpg", noisy_jpeg(width=90, height=75))


def test_every_kind_of_photo_gives_the_same_answer(photo):
    torch = pytest.importorskip("torch")
    some, image = model(), Image.open(photo)
    image.load()
    square = decode_square(photo, 73)
    x = (square[4:68, 4:68].astype(np.float32) - some.mean_image[4:68, 4:68]) / np.float32(32)
    logits = some.net.forward(x[None], train=False)[0].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum()
    pixels = np.array(image)
    kinds = [photo, str(photo), photo.open("rb"), image, pixels, torch.from_numpy(pixels.copy())]
    for kind in kinds:
        np.testing.assert_allclose(some.probabilities(kind)[0], expected, rtol=1e-5)
    found = some.predict(photo)
    assert [name for name, _ in found] == [NAMES[i] for i in (-expected).argsort()]
    ((name, probability),) = some.predict([photo, pixels], k=1)[1]
    assert (name, probability) == (found[0][0], pytest.approx(found[0][1], rel=1e-5))


def test_ten_views_are_averaged_and_batches_keep_their_order(photo):
    some = model()
    squares = np.random.default_rng(3).integers(0, 256, (70, 73, 73, 3), np.uint8)
    together = some.probabilities(squares)
    assert together.shape == (70, 3)
    np.testing.assert_allclose(together[65], some.probabilities(squares[65])[0], rtol=1e-4)
    ten = some.probabilities(squares[:1], views="ten")[0]
    x = some.augment.ten_views(squares[:1])
    logits = some.net.forward(x, train=False).astype(np.float64)
    each = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ten, each.mean(axis=0), rtol=1e-5)


def test_features_are_the_outputs_of_the_layer(photo):
    some = model()
    vectors = some.features([photo, photo], "fc7")
    assert vectors.shape == (2, some.net["fc7"].out_features)
    some.net.forward(some.preprocess(photo), train=False)
    np.testing.assert_allclose(vectors[0], some.net["drop7"].y[0], rtol=1e-4)


@pytest.mark.parametrize(
    "photo, message",
    [
        (np.zeros((3, 80, 90), np.uint8), r"\(3, 80, 90\) is channels first"),
        (np.zeros((80, 90, 3), np.float32), r"must be uint8 \(H, W, 3\).* not float32"),
        (np.zeros((80, 90), np.uint8), "must be uint8"),
        ("nowhere.jpg", "nowhere.jpg: No such file"),
        ([], "no photos"),
    ],
)
def test_what_is_no_photo_is_said(photo, message):
    with pytest.raises(PhotoError, match=message):
        model().predict(photo)


def test_the_net_takes_tensors_and_says_what_is_channels_first():
    torch = pytest.importorskip("torch")
    net = model().net
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    expected = np.array(net.forward(x, train=False))
    tensor = torch.from_numpy(x.copy())
    np.testing.assert_array_equal(net.forward(tensor, train=False), expected)
    np.testing.assert_array_equal(net.forward(tensor.requires_grad_(), train=False), expected)
    first = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
    permuted = first.permute(0, 2, 3, 1)  # a view that is not contiguous
    np.testing.assert_array_equal(net.forward(permuted, train=False), expected)
    with pytest.raises(ValueError, match=r"\(2, 3, 64, 64\): channels first \(NCHW\)"):
        net.forward(first)
    with pytest.raises(ValueError, match="x is a builtins.str.*load_model"):
        net.forward("photo.jpg")
    with pytest.raises(ValueError, match="cannot be used on cpu"):
        net.forward(torch.empty(2, 64, 64, 3, device="meta"))
    same = net.check_input(np.from_dlpack(torch.from_numpy(x)))
    assert np.shares_memory(same, x)  # no copy


def test_a_model_is_saved_and_loaded_to_the_bit(tmp_path, photo):
    some = model(seed=4)
    save_model(tmp_path / "weights.h5", some)
    for path in (tmp_path, tmp_path / "weights.h5"):
        again = load_model(path)
        assert (again.class_names, again.divisor) == (NAMES, 32)
        np.testing.assert_array_equal(again.mean_image, some.mean_image)
        np.testing.assert_array_equal(again.probabilities(photo), some.probabilities(photo))


def test_half_precision_rounds_once_and_is_smaller(tmp_path):
    some = model()
    save_model(tmp_path / "whole.h5", some)
    save_model(tmp_path / "half.h5", some, half=True)
    sizes = [(tmp_path / f"{name}.h5").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.65 * sizes[0]  # of a tiny net; half, and the bookkeeping of HDF5
    for one, other in zip(
        some.net.parameters(), load_model(tmp_path / "half.h5").net.parameters(), strict=True
    ):
        np.testing.assert_array_equal(other.value, one.value.astype("f2").astype("f4"))


def own_net():
    layers = {
        "conv1": Conv2D(3, 4, 5, stride=2, padding=(1, 3), groups=1),
        "act": Tanh(),
        "norm": LocalResponseNorm(3, k=1.5, alpha=0.2, beta=0.6, groups=2),
        "pool": MaxPool2D(2, 2),
        "flatten": Flatten(),
        "fc": Linear(256, 3),
    }
    return initialize(Sequential(layers, (32, 32, 3)), "robust", seed=2)


def test_a_net_of_ones_own_is_saved_with_its_layers(tmp_path):
    some = Model(own_net(), np.full((36, 36, 3), 100, np.float32), NAMES)
    save_model(tmp_path / "own.h5", some)
    squares = np.random.default_rng(0).integers(0, 256, (5, 36, 36, 3), np.uint8)
    again = load_model(tmp_path / "own.h5")
    np.testing.assert_array_equal(again.probabilities(squares), some.probabilities(squares))
    assert str(again.net) == str(some.net)


def test_a_layer_that_no_file_can_describe_is_refused(tmp_path):
    class Doubled(Layer):
        def forward(self, x, train=True):
            return 2 * x

        def backward(self, dy):
            return 2 * dy

    net = Sequential({"flatten": Flatten(), "double": Doubled(), "fc": Linear(12, 3)}, (2, 2, 3))
    with pytest.raises(ValueError, match="double: a Doubled cannot be saved; these can: Conv2D"):
        save_model(tmp_path / "x.h5", Model(net, np.zeros((2, 2, 3)), NAMES))
    assert not list(tmp_path.iterdir())


def test_other_classes_keep_every_layer_but_the_last():
    some = model()
    other = some.for_classes(["a", "b", "c", "d", "e"], seed=1)
    assert other.net["fc8"].weight.value.shape[0] == 5 and other.net["fc8"].weight.value.any()
    for one, two in zip(some.net.parameters()[:-2], other.net.parameters()[:-2], strict=True):
        np.testing.assert_array_equal(one.value, two.value)
        assert one.value is not two.value and one.lr_multiplier == two.lr_multiplier
    squares = np.random.default_rng(0).integers(0, 256, (2, 73, 73, 3), np.uint8)
    np.testing.assert_array_equal(some.features(squares, "fc7"), other.features(squares, "fc7"))


def test_names_and_sizes_that_do_not_fit():
    net = alexnet(3, 0.05, 64)
    with pytest.raises(ValueError, match="2 class names for 3 outputs"):
        Model(net, np.zeros((73, 73, 3)), ["a", "b"])
    with pytest.raises(ValueError, match="crops of 64 pixels do not fit"):
        Model(net, np.zeros((40, 40, 3)), NAMES)
    with pytest.raises(CheckpointError, match="holds neither best.h5 nor weights.h5"):
        load_model("docs")


def test_a_file_of_another_program_has_to_be_imported(tmp_path):
    path = tmp_path / "alexnet.safetensors"
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"import it first: python -m tinyconv import .*RUN$"):
        load_model(path)
