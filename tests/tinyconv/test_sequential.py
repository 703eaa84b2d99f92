"""The net as a list: order, names, shapes, the table."""

import copy
import pickle

import numpy as np
import pytest
from marks import long

from layers import Conv2D, Dropout, Flatten, Linear, LocalResponseNorm, MaxPool2D, ReLU
from tinyconv import SGD, Sequential, alexnet
from tinyconv.gradient_check import check_gradients
from tinyconv.initialize import initialize
from tinyconv.parallel.columns import Columns


def linear(inputs, outputs, seed):
    layer = Linear(inputs, outputs)
    layer.weight.value[...] = np.random.default_rng(seed).standard_normal((outputs, inputs))
    return layer


def test_forward_and_backward_compose_the_layers():
    first, second = linear(3, 4, 0), linear(4, 2, 1)
    net = Sequential([first, second]).to("cpu", "float64")
    x, dy = np.arange(6.0).reshape(2, 3), np.array([[1.0, -2.0], [0.5, 3.0]])
    a, b = first.weight.value, second.weight.value
    np.testing.assert_allclose(net.forward(x), x @ a.T @ b.T, rtol=1e-12)
    np.testing.assert_allclose(net.backward(dy), dy @ b @ a, rtol=1e-12)
    np.testing.assert_allclose(first.weight.grad, (dy @ b).T @ x, rtol=1e-12)


def test_without_the_input_gradient_the_parameters_get_theirs_all_the_same():
    net = Sequential([linear(3, 4, 0), linear(4, 2, 1)]).to("cpu", "float64")
    x, dy = np.ones((2, 3)), np.ones((2, 2))
    net.forward(x)
    net.backward(dy)
    wanted = [p.grad.copy() for p in net.parameters()]
    net[0].input_gradient = False
    net.forward(x)
    assert net.backward(dy) is None
    for parameter, grad in zip(net.parameters(), wanted, strict=True):
        np.testing.assert_array_equal(parameter.grad, grad)


def test_layers_are_found_by_place_and_by_name():
    conv, relu = Conv2D(3, 4, 3), ReLU()
    net = Sequential({"conv1": conv, "relu1": relu})
    assert net["conv1"] is conv and net[1] is relu and len(net) == 2 and list(net) == [conv, relu]
    assert [p.name for p in net.parameters()] == ["conv1.weight", "conv1.bias"]
    assert [layer.name for layer in Sequential([Conv2D(3, 4, 3), ReLU()])] == ["conv2d1", "relu2"]
    with pytest.raises(KeyError, match="no layer 'conv2'; there are conv1, relu1"):
        net["conv2"]


def test_shapes_that_do_not_fit_are_refused_when_the_net_is_made():
    with pytest.raises(ValueError, match=r"fc: an input of shape \(48,\).*expected \(50,\)"):
        Sequential({"flat": Flatten(), "fc": Linear(50, 2)}, input_shape=(4, 4, 3))


def test_an_empty_net_and_a_layer_in_two_places_are_refused():
    with pytest.raises(ValueError, match="at least one layer"):
        Sequential([])
    relu = ReLU()
    with pytest.raises(ValueError, match="appears twice"):
        Sequential([relu, relu])


def test_each_random_layer_gets_a_stream_of_its_own():
    net = Sequential([Dropout(0.5), Dropout(0.5)])
    net.set_seed(11)
    net.set_step(4)
    assert [(d.seed, d.stream, d.step) for d in net] == [(11, 0, 4), (11, 1, 4)]
    first = net[0].forward(np.ones((1, 64), np.float32)).copy()
    assert (first != net[1].forward(np.ones((1, 64), np.float32))).any()


def test_moving_the_net_moves_every_parameter(cuda_device):
    net = Sequential([linear(3, 4, 0), ReLU()]).to(cuda_device, "float64")
    assert net.device == cuda_device and net.dtype == np.float64
    assert all(p.value.dtype == p.grad.dtype == np.float64 for p in net.parameters())
    assert all(p.device == cuda_device for p in net.parameters())


def test_the_table_counts_parameters_and_multiply_adds():
    net = Sequential(
        {"conv1": Conv2D(3, 4, 3, padding=1), "flat": Flatten(), "fc": Linear(100, 7)},
        input_shape=(5, 5, 3),
    )
    rows = [line.split() for line in str(net).splitlines()]
    assert rows[0] == ["layer", "output", "parameters", "multiply-adds"]
    assert rows[1] == ["input", "5×5×3"]
    # 4 filters of 3·3·3 and 4 biases; 5·5 outputs of 4 · 27 products.
    assert rows[2] == ["conv1", "Conv2D", "(im2col,", "BLAS)", "5×5×4", "112", "2,700"]
    assert rows[4] == ["fc", "Linear", "(BLAS)", "7", "707", "700"]
    assert rows[5] == ["total", "819", "3,400"]


def test_the_table_of_a_net_without_an_input_shape_still_counts_parameters():
    assert "112" in str(Sequential({"conv1": Conv2D(3, 4, 3)}))


# --- the two tiers


def tiny_net(device, kernels, dtype="float64", mode="paper"):
    """Every kind of step, in the order of AlexNet; input (7, 6, 3)."""
    net = Sequential(
        {
            "conv1": Conv2D(3, 5, 3, padding=(0, 1)),
            "relu1": ReLU(),
            "norm1": LocalResponseNorm(3, alpha=0.5),
            "pool1": MaxPool2D(3, 2),
            "flatten": Flatten(),
            "fc2": Linear(20, 7),
            "relu2": ReLU(),
            "drop2": Dropout(0.3, mode=mode),
            "fc3": Linear(7, 6),
            "relu3": ReLU(),
            "fc4": Linear(6, 3),
        },
        (7, 6, 3),
    )
    initialize(net, "robust", seed=3)
    for parameter in net.parameters():
        if parameter.name.endswith("bias"):
            parameter.value[...] = 0.1
    return net.to(device, dtype, kernels=kernels)


def passes(net, train):
    """Copies on the host of y, dx and all gradients."""
    rng = np.random.default_rng(6)
    x, dy = rng.standard_normal((2, 7, 6, 3)), rng.standard_normal((2, 3))
    y = net.forward(net.device.array(x, net.dtype), train)
    arrays = [y, net.backward(net.device.array(dy, net.dtype))]
    arrays += [parameter.grad for parameter in net.parameters()]
    return [net.device.to_host(array).copy() for array in arrays]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("train", [True, False])
def test_fast_is_simple(train, dtype, device):
    tiers = (passes(tiny_net(device, kernels, dtype), train) for kernels in ("simple", "fast"))
    for right, mine in zip(*tiers, strict=True):
        # Sums in another order, and other roundings of LRN's power, pass through the net.
        error = 500 * np.finfo(dtype).eps
        np.testing.assert_allclose(mine, right, rtol=error, atol=error * np.abs(right).max())


@pytest.mark.parametrize("kernels", ["simple", "fast"])
def test_two_passes_give_the_same_bits(kernels, device):
    net = tiny_net(device, kernels, dtype="float32")
    first = passes(net, True)
    net.set_step(0)
    for mine, right in zip(passes(net, True), first, strict=True):
        np.testing.assert_array_equal(mine, right)


@pytest.mark.gradients
@pytest.mark.parametrize("kernels", ["simple", "fast"])
@pytest.mark.parametrize("mode", ["paper", long("inverted")])
@pytest.mark.parametrize("train", [True, long(False)])
def test_gradients_through_a_net(train, mode, kernels, device):
    net = tiny_net(device, kernels, mode=mode)
    x = np.random.default_rng(7).standard_normal((2, 7, 6, 3))
    # Two forward passes for each sample; the simulator takes a tenth of a second for one.
    samples = 3 if device.is_cuda else None
    rows = check_gradients(net, x, np.array([2, 0]), train=train, samples=samples)
    assert len(rows) == 9 and all(row.ok for row in rows), "\n".join(map(str, rows))


def test_the_tier_can_be_switched_and_the_layers_stay_the_same(device):
    net = tiny_net(device, "simple")
    layers, parameters = list(net.layers), net.parameters()
    assert net.steps == net.layers and net.kernels == "simple" and "(in fc2)" not in str(net)
    assert str(net).endswith("kernels simple: each layer as written in its file in layers/")
    net.to(device, kernels="fast")
    assert len(net.steps) < len(net.layers) and "ReLU (in fc2)" in str(net)
    assert net.to(device).kernels == "fast" and net.to(device, kernels="simple").kernels == "simple"
    assert net.to(device).steps == layers == net.layers
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert net["relu1"] is layers[1]


def test_simple_kernels_hit_the_layers_of_the_book(device, monkeypatch):
    net = tiny_net(device, "simple", dtype="float32")
    visited = []
    for layer in net.layers:
        forward = layer.forward

        def noted(x, train, layer=layer, forward=forward):
            visited.append(layer.name)
            return forward(x, train)

        monkeypatch.setattr(layer, "forward", noted)
    loss = net.loss()
    loss.forward(net.forward(device.array(np.ones((2, 7, 6, 3), np.float32))), np.array([0, 1]))
    assert visited == [layer.name for layer in net.layers]
    assert type(loss).__module__ == "layers.softmax_cross_entropy"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kernels": "quick"}, "kernels 'quick': use 'fast' or 'simple'"),
        ({"kernels": "simple", "precision": "bf16"}, "'simple' computes in precision 'fp32'"),
        ({"kernels": "fast", "precision": "fp8"}, "use 'fp32', 'tf32', 'bf16' or 'auto'"),
    ],
)
def test_tiers_that_make_no_sense_are_refused_and_nothing_changes(settings, message, device):
    net = tiny_net(device, "fast")
    steps = net.steps
    with pytest.raises(ValueError, match=message):
        net.to(device, "float32", **settings)
    assert net.steps is steps and net.dtype == np.float64
    assert (net.kernels, net.precision) == ("fast", "fp32")


def test_simple_kernels_settle_auto_on_fp32(device):
    assert tiny_net(device, "simple").to(device, "float32", "auto").precision == "fp32"


def test_a_hint_for_a_gpu_does_not_matter_before_the_net_is_there(cuda_device):
    net = Sequential([Conv2D(3, 4, 3, algorithm="tiled"), ReLU()], (5, 5, 3))
    with pytest.raises(ValueError, match="'tiled' does not run on cpu.*use 'auto' or"):
        net.to("cpu")
    assert "Conv2D (tiled)" in str(net.to(cuda_device))
    with pytest.raises(ValueError, match="does not run on cuda:0 in float64"):
        net.to(cuda_device, "float64", kernels="fast")
    assert net.dtype == np.float32 and "Conv2D (tiled)" in str(net)  # nothing has moved


def test_the_table_without_tiers_is_that_of_the_network_wherever_it_is_computed(cuda_device):
    """A checkpoint is compared by it: one of a GPU must resume on a host, and the other way."""
    net = alexnet(3, 0.05, 64, "robust")
    plain = net.table(computed=False)
    assert "(in " in net.table() and "(in " not in plain
    assert net.to("cpu", kernels="simple").table().startswith(plain)
    assert net.to(cuda_device, kernels="fast").table(computed=False) == plain != net.table()
    assert Columns(alexnet(3, 0.05, 64, "robust")).table() == plain


def test_a_part_of_a_net_keeps_its_names():
    net = alexnet(3, 0.05, 64)
    names, weights = [layer.name for layer in net], [p.name for p in net.parameters()]
    part = Sequential([*list(net)[:-1], ReLU(), ReLU()])
    assert [layer.name for layer in part] == [*names[:-1], "relu23", "relu24"]
    assert [layer.name for layer in net] == names
    assert [p.name for p in net.parameters()] == weights
    other = Sequential([Conv2D(1, 1, 1), net["relu1"], alexnet(3, 0.05, 64)["relu1"]])
    assert [layer.name for layer in other] == ["conv2d1", "relu1", "relu3"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("kernels", ["fast", "simple"])
def test_a_copy_trains_as_the_net_does_and_apart_from_it(copied, kernels, device):
    """Also with its optimizer, whose flat arrays hold the weights."""
    rng = np.random.default_rng(5)
    layers = Conv2D(3, 4, 3), ReLU(), MaxPool2D(2), LocalResponseNorm(), Dropout(), Flatten()
    net = Sequential([*layers, Linear(16, 3)], (7, 6, 3)).to(device, kernels=kernels)
    for parameter in net.parameters():
        parameter.value[...] = device.array(rng.standard_normal(parameter.value.shape), "float32")
    x = device.array(rng.standard_normal((2, 7, 6, 3)), "float32")
    optimizer = SGD(net.parameters(), lr=0.1)

    def step(net, optimizer):
        loss = net.loss()
        net.set_step(3)
        loss.forward(net.forward(x), np.array([0, 2]))
        net.backward(loss.backward())
        optimizer.step()
        return device.to_host(optimizer.values).copy()

    step(net, optimizer)  # buffers, plans and velocities are there
    twin, own = copied((net, optimizer))
    assert twin.device == net.device and own.values is not optimizer.values
    with pytest.raises(RuntimeError, match="needs a forward"):
        twin.backward(x)
    before = device.to_host(own.values).copy()
    after = step(net, optimizer)
    np.testing.assert_array_equal(device.to_host(own.values), before)
    np.testing.assert_array_equal(step(twin, own), after)
    assert not (before == after).all()
    for parameter, (value, _) in zip(twin.parameters(), own._views, strict=True):
        assert parameter.value is value and np.shares_memory(value, own.values)
