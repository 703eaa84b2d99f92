"""Weights out and in again: equal bits, or equal predictions; other files are refused in a line."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyconv import RECIPES, Model, alexnet, load_model, save_model
from tinyconv.run.models import ONE_COLUMN
from tinyconv.tools.command_line import main
from tinyconv.weights.caffe import caffe_net, message
from tinyconv.weights.export import export
from tinyconv.weights.importing import IMAGENET_MEAN, IMAGENET_STD, read
from tinyconv.weights.layouts import channels_first, placed

NAMES = ["cat", "dog", "größe"]


def random_weights(net, seed=0):
    rng = np.random.default_rng(seed)
    for p in net.parameters():
        p.value[...] = rng.normal(0, 1 / np.sqrt(p.value[0].size), p.value.shape)
    return net


def model(recipe="authors", side=73):
    net = random_weights(alexnet(3, 0.05, 64, recipe))
    mean = np.random.default_rng(1).uniform(90, 150, (side, side, 3)).astype(np.float32)
    return Model(net, mean, NAMES, RECIPES[recipe].input_divisor, ["n1", "n2", "n3"])


SQUARES = np.random.default_rng(5).integers(0, 256, (4, 73, 73, 3), np.uint8)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_a_round_trip_gives_equal_bits(ending, recipe, tmp_path):
    if ending == "safetensors":
        pytest.importorskip("safetensors")
    some = model(recipe)
    save_model(tmp_path / "weights.h5", some)
    file = tmp_path / f"net.{ending}"
    assert main(["export", str(tmp_path), str(file)]) == 0
    assert main(["import", str(file), str(tmp_path / "again")]) == 0
    again = load_model(tmp_path / "again")
    assert (again.class_names, again.class_ids) == (NAMES, ["n1", "n2", "n3"])
    assert again.divisor == some.divisor and str(again.net) == str(some.net)
    for one, two in zip(some.net.parameters(), again.net.parameters(), strict=True):
        np.testing.assert_array_equal(one.value, two.value)
    np.testing.assert_array_equal(again.mean_image, some.mean_image)
    np.testing.assert_array_equal(again.probabilities(SQUARES), some.probabilities(SQUARES))


def pytorch_example():
    """examples/load_in_pytorch.py as a module."""
    path = Path(__file__).resolve().parents[3] / "examples" / "load_in_pytorch.py"
    spec = importlib.util.spec_from_file_location("load_in_pytorch", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("recipe", [*RECIPES, "one-column"])
def test_exported_safetensors_agree_with_pytorch(recipe, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    some = model("robust" if recipe == "one-column" else recipe)
    if recipe == "one-column":
        net = random_weights(alexnet(3, 0.05, 64, "robust", variant="one-column"))
        some = Model(net, some.mean_image, NAMES, 32.0)
    export(some, tmp_path / "net.safetensors")
    example = pytorch_example()
    twin, mean, settings = example.load(tmp_path / "net.safetensors")
    assert settings["class_names"] == NAMES and list(mean.shape) == [3, 73, 73]
    x = torch.cat([example.preprocess(each, mean, settings) for each in SQUARES])
    with torch.no_grad():
        expected = twin(x).numpy()
    found = some.net.forward(some.preprocess(SQUARES), train=False)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    Image.fromarray(SQUARES[0]).save(tmp_path / "photo.png")
    example.main(tmp_path / "net.safetensors", tmp_path / "photo.png")
    name, probability = some.predict(SQUARES[0])[0]
    assert capsys.readouterr().out.splitlines()[0] == f"{probability:6.1%}  {name}"


def test_a_twin_that_trains_drops_units_as_the_paper_does():
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    dropout = pytorch_example().Dropout(0.25, "paper")
    y = dropout(torch.ones(10_000))
    assert set(y.tolist()) == {0.0, 1.0}
    assert y.mean() == pytest.approx(0.75, abs=0.02)  # deviation of the mean: 0.0043
    assert dropout.eval()(torch.ones(1)).item() == 0.75


@pytest.mark.parametrize("recipe", RECIPES)
def test_onnx_runs_and_agrees(recipe, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    some = model(recipe)
    for name, with_mean in (("x", False), ("pixels", True)):
        path = tmp_path / f"{name}.onnx"
        export(some, path, with_mean)
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        x = some.preprocess(SQUARES) if name == "x" else SQUARES[:, 4:68, 4:68].astype(np.float32)
        logits, found = session.run(None, {name: np.moveaxis(x, -1, 1).copy()})
        np.testing.assert_allclose(found, some.probabilities(SQUARES), atol=1e-4)
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
        wanted = some.net.forward(some.preprocess(SQUARES), train=False)
        np.testing.assert_allclose(logits, wanted, atol=1e-4 * np.abs(wanted).max())
    props = {p.key: p.value for p in onnx.load(str(path)).metadata_props}
    assert json.loads(props["class_names"]) == NAMES


def torchvision_state(seed=2, width=0.1, classes=4):
    """The arrays of a one-column net in PyTorch's layout, and the net they belong to."""
    net = random_weights(ONE_COLUMN(classes, width, 224, init=False), seed)
    state = {}
    for each in placed(net):
        weight, bias = channels_first(each)
        state |= {f"{each.name}.weight": weight, f"{each.name}.bias": bias}
    return state


def torchvisions(torch, state):
    """torchvision's modules (its models/alexnet.py), of the sizes in `state`, and its weights."""
    from torch import nn

    k = [len(state[f"features.{place}.weight"]) for place in (0, 3, 6, 8, 10)]
    u = [len(state[f"classifier.{place}.weight"]) for place in (1, 4, 6)]
    pool, relu, drop = nn.MaxPool2d(3, 2), nn.ReLU(), nn.Dropout(0.5)
    net = nn.Module()
    net.features = nn.Sequential(
        *(nn.Conv2d(3, k[0], 11, stride=4, padding=2), relu, pool),
        *(nn.Conv2d(k[0], k[1], 5, padding=2), relu, pool),
        *(nn.Conv2d(k[1], k[2], 3, padding=1), relu),
        *(nn.Conv2d(k[2], k[3], 3, padding=1), relu),
        *(nn.Conv2d(k[3], k[4], 3, padding=1), relu, pool),
    )
    net.classifier = nn.Sequential(
        *(drop, nn.Linear(36 * k[4], u[0]), relu),
        *(drop, nn.Linear(u[0], u[1]), relu, nn.Linear(u[1], u[2])),
    )
    net.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    net.eval()
    return lambda x: net.classifier(nn.AdaptiveAvgPool2d(6)(net.features(x)).flatten(1))


def test_torchvisions_names_are_those_of_the_one_column_net():
    names = [each.name for each in placed(ONE_COLUMN(4, 0.1, init=False))]
    assert names == [
        *("features.0", "features.3", "features.6", "features.8", "features.10"),
        *("classifier.1", "classifier.4", "classifier.6"),
    ]


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_torchvisions_weights_give_pytorchs_answers(ending, tmp_path):
    torch, safetensors = pytest.importorskip("torch"), pytest.importorskip("safetensors.numpy")
    state, path = torchvision_state(), tmp_path / f"net.{ending}"
    if ending == "pth":
        torch.save({name: torch.from_numpy(array) for name, array in state.items()}, path)
    else:
        safetensors.save_file(state, path)
    classes = tmp_path / "classes.txt"
    classes.write_text("a\nb\nc\nd\n")
    assert main(["import", str(path), str(tmp_path / "run"), "--classes", str(classes)]) == 0
    some = load_model(tmp_path / "run")
    assert some.class_names == ["a", "b", "c", "d"] and some.net.input_shape == (224, 224, 3)
    squares = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    crop = squares[:, 16:240, 16:240].astype(np.float32) / 255
    x = np.moveaxis((crop - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD), -1, 1)
    twin = torchvisions(torch, state)
    with torch.no_grad():
        expected = torch.softmax(twin(torch.from_numpy(x.copy())), 1).numpy()
    np.testing.assert_allclose(some.probabilities(squares), expected, atol=1e-4)
    assert expected.max() < 0.999


@pytest.mark.full
def test_torchvision_itself_agrees(tmp_path):
    torch, models = pytest.importorskip("torch"), pytest.importorskip("torchvision.models")
    pytest.importorskip("safetensors")
    from safetensors.torch import load_file

    torch.manual_seed(0)
    net = models.alexnet(num_classes=4).eval()
    for weight in net.parameters():
        if weight.ndim > 1:
            torch.nn.init.kaiming_normal_(weight)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    some = read(tmp_path / "net.pth")
    squares = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    crop = squares[:, 16:240, 16:240].astype(np.float32) / 255
    x = np.moveaxis((crop - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD), -1, 1)
    with torch.no_grad():
        expected = net(torch.from_numpy(x.copy())).softmax(1).numpy()
    np.testing.assert_allclose(some.probabilities(squares), expected, atol=1e-4)
    export(some, tmp_path / "net.safetensors")
    state = load_file(tmp_path / "net.safetensors")
    del state["mean_image"]
    net.load_state_dict(state)  # strictly; its input now has one divisor
    x = np.moveaxis(some.preprocess(squares), -1, 1).copy()
    with torch.no_grad():
        again = net(torch.from_numpy(x)).softmax(1).numpy()
    np.testing.assert_allclose(again, expected, atol=1e-4)


def write_blob(blob, array, old=False):
    blob.data.extend(array.ravel().tolist())
    if old:
        shape = (1,) * (4 - array.ndim) + array.shape
        blob.num, blob.channels, blob.height, blob.width = shape
    else:
        blob.shape.dim.extend(array.shape)


@pytest.mark.parametrize("pool_first", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_caffes_blobs_and_mean(old, pool_first, tmp_path):
    pytest.importorskip("google.protobuf")
    net = random_weights(caffe_net(4, 6 / 96, 67, pool_first), 3)
    proto = message("NetParameter")()
    weights = {each.layer: each for each in placed(net)}
    for each in net:
        layer = (proto.layers if old else proto.layer).add(name=each.name)
        if each not in weights:
            continue
        each = weights[each]
        weight, bias = channels_first(each)
        if each.layer.name == "conv1":
            weight = weight[:, ::-1]  # Caffe's photos are blue, green, red
        write_blob(layer.blobs.add(), weight, old)
        write_blob(layer.blobs.add(), bias, old)
    (tmp_path / "net.caffemodel").write_bytes(proto.SerializeToString())
    mean = np.random.default_rng(1).uniform(90, 150, (67, 67, 3)).astype(np.float32)
    blob = message("BlobProto")()
    write_blob(blob, np.moveaxis(mean[..., ::-1], -1, 0)[None], old)
    (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString())
    command = ["import", str(tmp_path / "net.caffemodel"), str(tmp_path / "run")]
    assert main([*command, "--mean", str(tmp_path / "mean.binaryproto")]) == 0
    some = load_model(tmp_path / "run")
    np.testing.assert_array_equal(some.mean_image, mean)
    for one, two in zip(net.parameters(), some.net.parameters(), strict=True):
        np.testing.assert_array_equal(one.value, two.value)
    assert (some.net["norm1"].k, some.net["norm1"].alpha) == (1.0, 2e-5)
    names = [layer.name for layer in some.net]
    assert (names.index("pool1") < names.index("norm1")) == pool_first
    assert (names.index("pool2") < names.index("norm2")) == pool_first
    squares = np.random.default_rng(0).integers(0, 256, (2, 67, 67, 3), np.uint8)
    expected = Model(net, mean, list("abcd")).probabilities(squares)
    np.testing.assert_array_equal(some.probabilities(squares), expected)


def test_no_code_in_a_file_is_run(tmp_path, capsys):
    torch = pytest.importorskip("torch")

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save({"features.0.weight": Bomb()}, tmp_path / "bomb.pth")
    np.savez(tmp_path / "bomb.npz", tinyconv=np.array([Bomb()], object), mean_image=np.zeros(3))
    for name in ("bomb.pth", "bomb.npz"):
        assert main(["import", str(tmp_path / name), str(tmp_path / "run")]) == 2
    assert not (tmp_path / "exploded").exists() and not (tmp_path / "run").exists()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "weights_only=True" in lines[0]


def test_wrong_files_are_refused_in_one_line(tmp_path, capsys):
    pytest.importorskip("safetensors")
    from safetensors.numpy import save_file

    state = torchvision_state()
    wrong = dict(state)
    wrong["classifier.4.bias"] = np.zeros(7, np.float32)
    save_file(wrong, tmp_path / "shape.safetensors")
    save_file({"conv.weight": np.zeros((2, 3), np.float32)}, tmp_path / "other.safetensors")
    vgg = {"features.0.weight": np.zeros((8, 3, 3, 3), np.float32)}
    save_file(
        vgg | {"classifier.6.weight": np.zeros((4, 8), np.float32)}, tmp_path / "vgg.safetensors"
    )
    save_file(state | {"features.99.bias": np.zeros(1)}, tmp_path / "more.safetensors")
    for name in (
        "damaged.safetensors",
        "damaged.npz",
        "damaged.caffemodel",
        "net.pkl",
        "empty.pth",
    ):
        (tmp_path / name).write_bytes(b"\xff\xff\xff nothing of the kind")
    np.savez(tmp_path / "plain.npz", a=np.zeros(3))
    expected = {
        "shape.safetensors": "fc7: the bias in the file is (7,), the net has",
        "other.safetensors": "begins with conv.weight (2, 3); expected torchvision's AlexNet",
        "vgg.safetensors": "features.0.weight (8, 3, 3, 3)",
        "more.safetensors": "features.99.bias is missing, or is not of this net",
        "damaged.safetensors": "not a safetensors file",
        "damaged.npz": "not an .npz of tinyconv",
        "plain.npz": "expected a file of `export`",
        "damaged.caffemodel": "add --mean",
        "net.pkl": "import reads .safetensors, .npz, .pth and .caffemodel",
        "empty.pth": "weights_only=True) refuses it"
        if importlib.util.find_spec("torch")
        else "needs PyTorch",
        "nowhere.npz": "No such file",
    }
    for name, message_ in expected.items():
        assert main(["import", str(tmp_path / name), str(tmp_path / "run")]) == 2, name
        (line,) = capsys.readouterr().err.splitlines()
        assert message_ in line, (name, line)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("package, ending", [("safetensors", "safetensors"), ("onnx", "onnx")])
def test_without_the_extra_a_line_names_it(package, ending, tmp_path, monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "tinyconv.weights.onnx_graph", raising=False)
    for name in (package, f"{package}.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ValueError, match=rf"^{package} is not installed: pip install -e '.\[export\]'"
    ):
        export(model(), tmp_path / f"net.{ending}")
    assert not list(tmp_path.iterdir())


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="export writes .safetensors, .onnx, .npz"):
        export(model(), tmp_path / "net.pb")
    with pytest.raises(ValueError, match="--with-mean is for .onnx"):
        export(model(), tmp_path / "net.npz", with_mean=True)


def test_a_recipe_of_ones_own_survives(tmp_path):
    some = model()
    some.settings["recipe"] = replace(RECIPES["robust"], name="mine", input_divisor=1.1).__dict__
    export(some, tmp_path / "net.npz")
    assert read(tmp_path / "net.npz").settings["recipe"]["name"] == "mine"
