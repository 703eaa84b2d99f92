"""The two-column net is the one-device net: outputs, gradients, ten steps of training; in bf16.

[one GPU twice] and [two GPUs] run where there are GPUs, and are skipped in sight elsewhere.
"""

import numpy as np
import pytest
from marks import long

from layers import (
    Conv2D,
    Device,
    Dropout,
    Flatten,
    Layer,
    Linear,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
)
from layers.device import SIMULATED, DeviceError
from layers.fast.bfloat16 import from_bits, round_bf16, to_bits
from layers.fast.precision import BITS
from tinyconv import RECIPES, SGD, Sequential, alexnet, initialize
from tinyconv.parallel.collectives import AllGather, BorderNorm
from tinyconv.parallel.column_training import ColumnSGD
from tinyconv.parallel.columns import Columns, two_devices
from tinyconv.parallel.convert import copy_weights
from tinyconv.parallel.stage import Both


def small_net(groups_in_norm=1):
    """Everything AlexNet has, small enough for the simulator. Odd numbers of classes and units."""
    layers = {
        "conv1": Conv2D(3, 6, 3, stride=2, padding=(0, 1)),
        "relu1": ReLU(),
        "norm1": LocalResponseNorm(5, 2.0, 0.5, 0.75, groups=groups_in_norm),
        "pool1": MaxPool2D(3, 2),
        "conv2": Conv2D(6, 8, 3, padding=1, groups=2),
        "relu2": ReLU(),
        "conv3": Conv2D(8, 4, 3, padding=1),
        "conv4": Conv2D(4, 6, 1, groups=2),
        "flatten": Flatten(),
        "fc6": Linear(6 * 2 * 3, 7),
        "relu6": ReLU(),
        "drop6": Dropout(0.4),
        "fc8": Linear(7, 3),
    }
    return initialize(Sequential(layers, (12, 14, 3)), "robust", seed=5).to("cpu", "float64")


def batch(step, shape=(4, 12, 14, 3), classes=3):
    rng = np.random.default_rng(step)
    return rng.normal(size=shape), rng.integers(0, classes, shape[0])


def devices_of(name):
    if SIMULATED and name.startswith("cuda:0,cuda"):
        pytest.skip("no GPU here: the simulator takes the place of one")
    try:
        return two_devices("cuda:0,cuda:0" if name == "simulated" else name)
    except DeviceError as error:
        pytest.skip(str(error))


DEVICES = [
    pytest.param("cpu,cpu", id="host"),
    pytest.param("simulated", marks=pytest.mark.skipif(not SIMULATED, reason="there is a GPU")),
    pytest.param("cuda:0,cuda:0", id="one GPU twice"),
    pytest.param("cuda:0,cuda:1", id="two GPUs"),
]


def train(net, batches, steps=10, lr=0.05, both=False):
    """Of a few steps, on the host: losses, the last logits, dL/dx and gradients, and weights.

    both: each column is given the photos.
    """
    optimizer = (ColumnSGD if isinstance(net, Columns) else SGD)(net.parameters(), lr)
    loss, found = net.loss(), {"loss": []}
    for step in range(steps):
        x, labels = batches(step)
        net.set_step(step)
        x = net.device.array(x, net.dtype)
        y = net.forward(Both((x, x)) if both else x)
        found["loss"].append(loss.forward(y, labels))
        dx = net.backward(loss.backward())
        found |= {"y": Device.to_host(y).copy(), "dx": Device.to_host(dx).copy()}
        found |= {f"d{p.name}": Device.to_host(p.grad).copy() for p in net.parameters()}
        optimizer.step()
    return found | {p.name: Device.to_host(p.value).copy() for p in net.parameters()}


def assert_equal_training(grouped, columns, batches, tolerance, steps=10):
    one, two = train(grouped, batches, steps), train(columns, batches, steps)
    assert list(one) == list(two)
    for name, wanted in one.items():
        atol = tolerance * np.abs(wanted).max()
        np.testing.assert_allclose(two[name], wanted, atol=atol, rtol=0, err_msg=name)
    for parameter in columns.to_grouped().parameters():
        np.testing.assert_array_equal(parameter.value, two[parameter.name])


@pytest.mark.parametrize("groups_in_norm", [long(1), 2])
@pytest.mark.parametrize("names", DEVICES)
def test_ten_steps_of_a_small_net_are_those_of_one_device(names, groups_in_norm):
    grouped = small_net(groups_in_norm)
    columns = Columns(grouped, devices_of(names))
    # float64 on every device: sums in other orders, ten steps long.
    steps = 3 if names == "simulated" else 10
    assert_equal_training(grouped, columns, batch, 1e-9, steps)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "dtype, steps, tolerance",
    [("float64", 10, 1e-9), long("float32", 10, 1e-3), ("float32", 1, 1e-5)],
)
def test_steps_of_alexnet_are_those_of_one_device(recipe, dtype, steps, tolerance):
    """float32: a dot product rounds at 6e-8 in another order, and ten steps amplify it."""
    grouped = alexnet(5, 0.1, 67, recipe, seed=3).to("cpu", dtype)
    columns = Columns(grouped)
    assert any(isinstance(stage, BorderNorm) for stage in columns) == (recipe != "authors")

    def photos(step):
        x, labels = batch(step % 3, (3, 67, 67, 3), 5)
        return 50 * x if recipe != "robust" and steps > 1 else x, labels

    assert_equal_training(grouped, columns, photos, tolerance, steps)


def test_testing_mode_and_a_smaller_batch_and_both_inputs_agree():
    grouped = small_net()
    columns = Columns(grouped)
    for count in (4, 3, 1):
        x, _ = batch(7, (count, 12, 14, 3))
        wanted = grouped.forward(x, train=False)
        np.testing.assert_allclose(columns.forward(x, train=False), wanted, rtol=1e-12)
        shared = columns.forward(Both((x, x.copy())), train=False)
        np.testing.assert_allclose(shared, wanted, rtol=1e-12)


def test_masks_are_those_of_one_device_at_any_seed_and_step():
    grouped = small_net()
    columns = Columns(grouped)
    for net in (grouped, columns):
        net.set_seed(11)
        net.set_step(40)
    x, _ = batch(0)
    np.testing.assert_allclose(columns.forward(x), grouped.forward(x), rtol=1e-12)
    np.testing.assert_array_equal(columns["drop6"].columns[0].y, columns["drop6"].columns[1].y)
    zeros = grouped["drop6"].y == 0
    assert zeros.any() and not zeros.all()
    np.testing.assert_array_equal(columns["drop6"].columns[1].y == 0, zeros)


def test_each_column_has_half_of_every_layers_filters():
    columns = Columns(alexnet(10, 0.1, 67, "authors"))
    sizes = {
        stage.name: [layer.weight.value.shape for layer in stage.columns]
        for stage in columns.layers
        if stage.parameters()
    }
    assert all(first == second for first, second in sizes.values())
    grouped = {p.name: p.value.shape for p in alexnet(10, 0.1, 67, "authors").parameters()}
    for name, (half, _) in sizes.items():
        assert 2 * half[0] == grouped[f"{name}.weight"][0]
        assert half[1:] == grouped[f"{name}.weight"][1:]


@pytest.mark.full
def test_what_crosses_in_the_papers_net():
    columns = Columns(alexnet(recipe="paper"))
    crossings = {name: (first, second) for name, first, second in columns.crossings()}
    assert crossings == {
        "broadcast": (224 * 224 * 3, 0),
        "norm1": (55 * 55 * 2,) * 2,
        "norm2": (27 * 27 * 2,) * 2,
        "all_gather_conv3": (13 * 13 * 128,) * 2,
        "all_gather_fc6": (6 * 6 * 128,) * 2,
        "all_gather_fc7": (2048,) * 2,
        "all_gather_fc8": (2048,) * 2,
        "gather": (0, 500),
    }
    assert "60,965,224" in str(columns)


def test_a_step_allocates_nothing_new(monkeypatch):
    columns = Columns(small_net())
    loss, sgd = columns.loss(), ColumnSGD(columns.parameters())

    def step(k):
        x, labels = batch(k)
        loss.forward(columns.forward(x), labels)
        columns.backward(loss.backward())
        sgd.step()

    step(0)
    made = []
    monkeypatch.setattr(Device, "empty", lambda *arguments: made.append(arguments))
    step(1)
    assert not made


def test_without_the_input_gradient_backward_gives_none():
    columns = Columns(small_net())
    columns.layers[0].input_gradient = False
    x, _ = batch(0)
    assert columns.backward(columns.forward(x)) is None
    columns.layers[0].input_gradient = True
    assert columns.backward(columns.forward(x)).shape == x.shape


# --- conversions


def test_conversions_both_ways_keep_every_bit_and_every_choice():
    grouped = alexnet(7, 0.05, 64, "authors", seed=2)
    back = Columns(grouped).to_grouped()
    assert str(back) == str(grouped)
    assert str(Columns(grouped)) == grouped.table(computed=False)
    for old, new in zip(grouped.parameters(), back.parameters(), strict=True):
        assert (old.name, old.lr_multiplier) == (new.name, new.lr_multiplier)
        assert old.decay_multiplier == new.decay_multiplier
        np.testing.assert_array_equal(old.value, new.value)
    for old, new in zip(grouped.layers, back.layers, strict=True):
        assert type(old) is type(new) and old.name == new.name
        own = {k: v for k, v in vars(old).items() if isinstance(v, int | float | str | bool)}
        assert own == {k: vars(new)[k] for k in own}


def test_a_conversion_is_a_copy():
    grouped = small_net()
    columns = Columns(grouped)
    grouped["fc6"].weight.value[...] = 7
    assert not (columns["fc6"].weight.value.get() == 7).any()
    columns["fc6"].weight.value[...] = 9
    assert (grouped["fc6"].weight.value == 7).all()
    assert (columns["fc6"].columns[1].weight.value == 9).all()


class Strange(Layer):
    def forward(self, x, train=True):
        return x

    def backward(self, dy):
        return dy


LONE = Sequential({"fc8": Linear(7, 3)})


@pytest.mark.parametrize(
    "make, said",
    [
        (
            lambda: copy_weights(alexnet(3, 0.05, 64), Columns(small_net())),
            r"conv1.weight: needs \(6, 3, 3, 3\), there is one of",
        ),
        (lambda: copy_weights(LONE, Columns(small_net())), "conv1.weight: needs .* there is none"),
        (
            lambda: copy_weights(Columns(small_net()), LONE),
            "conv1.weight: the net that it is copied to has no such",
        ),
        (lambda: Columns(Sequential({"conv1": Conv2D(3, 6, 3)})).crossings(), "no input_shape"),
    ],
)
def test_weights_and_crossings_need_a_net_that_fits(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    "layers, said",
    [
        ({"conv1": Conv2D(3, 1, 3)}, "conv1: 1 outputs"),
        ({"conv1": Conv2D(3, 6, 3, groups=3)}, "conv1: 6 outputs in 3 group"),
        ({"conv1": Conv2D(2, 6, 3, groups=2)}, "conv1: two groups, and both columns hold all"),
        ({"conv1": Conv2D(3, 6, 3), "n": LocalResponseNorm(groups=3)}, "n: 3 groups do not fit"),
        ({"conv1": Conv2D(3, 6, 3), "odd": Strange()}, "odd: there is no two-column form of Str"),
        ({"relu": ReLU()}, "no layer with filters"),
    ],
)
def test_a_net_that_cannot_be_halved_is_refused(layers, said):
    with pytest.raises(ValueError, match=said):
        Columns(Sequential(layers))


# --- device lists


WRONG = ["cpu", "auto", "", "cpu,", "cpu,cpu,cpu", ",", "cpu,auto"]


@pytest.mark.parametrize(
    "names, error, said",
    [
        *(
            (each, ValueError, "--parallel columns needs two devices, such as cuda:0,cuda:1")
            for each in WRONG
        ),
        ("cpu,cuda:0", ValueError, "two devices of one kind"),
        ("cuda:0,cuda:99", DeviceError, "cuda:99"),
        ("gpu,gpu", ValueError, "device 'gpu'"),
    ],
)
def test_a_list_that_is_not_of_two_devices_is_refused_in_one_line(names, error, said, cuda_device):
    with pytest.raises(error, match=said) as caught:
        two_devices(names)
    assert "\n" not in str(caught.value) and (
        names not in WRONG or repr(names) in str(caught.value)
    )


def test_names_devices_and_pairs_all_say_where_a_net_goes(cuda_device):
    columns = Columns(small_net())
    for place in ("cpu, cpu", ["cpu", "cpu"], "cpu", Device("cpu"), (Device("cpu"), "cpu")):
        assert columns.to(place).devices == (Device("cpu"), Device("cpu"))
    assert columns.to(cuda_device, "float32").devices == (cuda_device, cuda_device)
    assert columns.device == cuda_device and columns.dtype == np.float32


# --- bf16: the one-device net's roundings at the same places, on host and kernels


def small_float32():
    """As `small_net`, of every collective: conv4 of it has two groups, and has to go."""
    layers = {layer.name: layer for layer in small_net().layers if layer.name != "conv4"}
    layers |= {"fc6": Linear(4 * 2 * 3, 7), "drop6": Dropout(0.5)}
    return initialize(Sequential(layers, (12, 14, 3)), "robust", seed=5).to("cpu", "float32")


def same_labels(step):
    return batch(step)[0], np.array([1, 0, 2, 1])


@pytest.mark.parametrize("both", [False, True])
def test_training_steps_in_bf16_are_those_of_one_device(both):
    """But for roundings: what crosses back is rounded before the columns' gradients are added."""
    nets = [small_float32().to("cpu", precision=name) for name in ("bf16", "fp32")]
    right, single = (train(net, same_labels, 2, 0.1) for net in nets)
    found = train(Columns(small_float32()).to("cpu", precision="bf16"), same_labels, 2, 0.1, both)
    assert found["loss"] == pytest.approx(right["loss"], rel=1e-3)
    names = [parameter.name for parameter in nets[0].parameters()]
    weights, right, single = (
        np.concatenate([each[name].reshape(-1) for name in names])
        for each in (found, right, single)
    )
    np.testing.assert_allclose(weights, right, rtol=0, atol=1e-3 * np.abs(right).max())
    assert np.abs(weights - single).max() > 5 * np.abs(weights - right).max()


@pytest.mark.full
def test_kernels_round_where_the_host_does(cuda_device):
    nets = [Columns(small_float32()).to(d, precision="bf16") for d in (cuda_device, "cpu")]
    found, right = (train(net, same_labels, 1, 0.1, both=net is nets[0]) for net in nets)
    assert found["loss"] == pytest.approx(right["loss"], rel=1e-6)
    largest = max(np.abs(right[parameter.name]).max() for parameter in nets[0].parameters())
    for parameter in nets[0].parameters():
        # A bfloat16 in the middle of two goes the other way now and then.
        wanted = right[parameter.name]
        np.testing.assert_allclose(found[parameter.name], wanted, rtol=0, atol=1e-4 * largest)


def test_what_the_columns_all_gather_is_bfloat16_and_is_added_in_float32(cuda_device):
    rng = np.random.default_rng(3)
    x = [round_bf16(*[rng.normal(size=(2, 5, 3)).astype(np.float32)] * 2) for _ in range(2)]
    dy = [round_bf16(*[rng.normal(size=(2, 5, 6)).astype(np.float32)] * 2) for _ in range(2)]
    all_gather = AllGather()
    all_gather.to((cuda_device, cuda_device), "float32", "bf16")
    y = all_gather.forward(Both(cuda_device.array(to_bits(each)) for each in x))
    dx = all_gather.backward(Both(cuda_device.array(to_bits(each)) for each in dy))
    assert all(array.dtype == BITS for array in (*y, *dx))
    for c in range(2):
        np.testing.assert_array_equal(from_bits(y[c]), np.concatenate(x, axis=-1))
        own = slice(3 * c, 3 * c + 3)
        total = dy[c][..., own] + dy[1 - c][..., own]
        np.testing.assert_array_equal(from_bits(dx[c]), round_bf16(total, total))
