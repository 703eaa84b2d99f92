"""Stages that copy between the columns: what crosses, what comes back, and in which order."""

from pathlib import Path

import numpy as np
import pytest
from fake_gpus import Gpus

from layers import Device, LocalResponseNorm
from tinyconv.parallel.collectives import AllGather, BorderNorm, Broadcast, Gather
from tinyconv.parallel.link import Link
from tinyconv.parallel.stage import COLUMNS, Both

DOCS = Path(__file__).resolve().parents[3] / "docs"
SHAPES = [(2, 3, 5, 7), (2, 3, 5, 4)]


def drawn(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def on(device, stage):
    """The stage with both columns on one device."""
    stage.to((device, device), "float64")
    stage.connect((Link(device, device), Link(device, device)))
    return stage


def host(arrays):
    return [Device.to_host(array) for array in arrays]


def literal(reach, x, dy):
    """What an all-gather gives, written with concatenate."""
    sent = [array.shape[-1] if reach is None else min(reach, array.shape[-1]) for array in x]
    near = x[0][..., x[0].shape[-1] - sent[0] :], x[1][..., : sent[1]]
    y = [np.concatenate(pair, axis=-1) for pair in ((x[0], near[1]), (near[0], x[1]))]
    if dy is None:
        return y
    width = x[0].shape[-1]
    dx = [dy[0][..., :width].copy(), dy[1][..., sent[0] :].copy()]
    dx[0][..., width - sent[0] :] += dy[1][..., : sent[0]]
    dx[1][..., : sent[1]] += dy[0][..., width:]
    return y, dx


@pytest.mark.parametrize("reach", [None, 1, 2, 6, 50])
def test_an_all_gather_joins_channels_and_adds_their_gradients(reach, device):
    x = drawn(SHAPES)
    dy = drawn([y.shape for y in literal(reach, x, None)], seed=1)
    y, dx = literal(reach, x, dy)
    stage = on(device, AllGather(reach))
    for _ in range(2):  # the second time in the buffers of the first
        found = host(stage.forward([device.array(each) for each in x]))
        found_dx = host(stage.backward([device.array(each) for each in dy]))
        for c in COLUMNS:
            np.testing.assert_array_equal(found[c], y[c])
            np.testing.assert_array_equal(found_dx[c], dx[c])
    shapes = [shape[1:] for shape in SHAPES]
    assert [(2, *shape) for shape in stage.output_shape(shapes)] == [each.shape for each in y]
    sent = [min(reach or 50, shape[-1]) * 15 for shape in SHAPES]
    assert list(stage.crossing(shapes)) == sent


def test_the_example_of_the_document():
    """docs/two_gpus.md: one place, one channel in each column."""
    document = (DOCS / "two_gpus.md").read_text("utf-8")
    assert "if dL/dy_0 = (3, 5) and dL/dy_1 = (10, 20)" in document
    assert "dL/dx_0 = 13 and dL/dx_1 = 25" in document
    stage = on(Device("cpu"), AllGather())
    stage.forward([np.zeros((1, 1)), np.zeros((1, 1))])
    first, second = stage.backward([np.array([[3.0, 5.0]]), np.array([[10.0, 20.0]])])
    assert (first.item(), second.item()) == (13, 25)


@pytest.mark.parametrize("widths", [(7, 4), (1, 1), (1, 6), (3, 1)])
@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_a_border_norm_is_the_normalization_across_all_channels(widths, size, device):
    window = (size, 2.0, 0.5, 0.75)  # α large enough to show a wrong window
    x = drawn([(2, 3, width) for width in widths])
    dy = drawn([(2, 3, width) for width in widths], seed=1)
    one = LocalResponseNorm(*window).to("cpu", "float64")
    y = one.forward(np.concatenate(x, axis=-1))
    dx = one.backward(np.concatenate(dy, axis=-1))
    stage = on(device, BorderNorm(*window))
    found = np.concatenate(host(stage.forward([device.array(each) for each in x])), axis=-1)
    found_dx = np.concatenate(host(stage.backward([device.array(each) for each in dy])), axis=-1)
    # float64: the host and a kernel add the squares of a window in other orders.
    np.testing.assert_allclose(found, y, rtol=1e-13)
    np.testing.assert_allclose(found_dx, dx, rtol=1e-11, atol=1e-14)


def test_gather_and_broadcast_are_each_others_backward_pass(device):
    x = drawn(SHAPES)
    gather, broadcast = on(device, Gather()), on(device, Broadcast())
    whole = device.to_host(gather.forward([device.array(each) for each in x]))
    np.testing.assert_array_equal(whole, np.concatenate(x, axis=-1))
    for c, part in enumerate(host(gather.backward(device.array(2 * whole)))):
        np.testing.assert_array_equal(part, 2 * x[c])
    (photos,) = drawn([(2, 3, 5, 3)])
    first, second = host(broadcast.forward(device.array(photos)))
    np.testing.assert_array_equal(first, photos)
    np.testing.assert_array_equal(second, photos)
    dx = broadcast.backward(Both((device.array(photos), device.array(3 * photos))))
    np.testing.assert_array_equal(device.to_host(dx), photos + 3 * photos)
    assert broadcast.backward(None) is None
    both = Both((first, second))
    assert broadcast.forward(both) is both


def test_both_is_one_row_of_numbers_where_an_array_is_asked_for():
    both = Both((np.ones((2, 3)), np.full((2, 1), np.nan)))
    assert both.get().shape == (8,)
    assert np.isfinite(both).sum() == 6 and not np.isfinite(both).all()
    assert np.asarray(both, np.float32).dtype == np.float32


@pytest.mark.parametrize(
    "arrays, said",
    [
        (np.ones((2, 3, 4)), "needs x as two arrays"),
        ([np.ones((2, 3, 4))], "needs x as two arrays"),
        ([np.ones((2, 3, 4)), np.ones((3, 3, 4))], r"\(2, 3, 4\) and \(3, 3, 4\).*the channels"),
        ([np.ones((2, 3, 4)), np.ones((2, 4))], r"\(2, 3, 4\) and \(2, 4\)"),
        ([np.ones(3), np.ones(3)], r"\(3,\) and \(3,\)"),
        ([np.ones((2, 3)), np.ones((2, 3), np.float32)], "x is float32.*float64"),
        ([np.ones((2, 3)), [[1, 2], [3, 4]]], "numpy array"),
    ],
)
def test_what_is_no_pair_is_refused(arrays, said):
    with pytest.raises(ValueError, match=said):
        on(Device("cpu"), AllGather()).forward(arrays)


def test_a_gradient_has_to_fit_and_comes_after_a_forward():
    stage = on(Device("cpu"), AllGather())
    with pytest.raises(RuntimeError, match="needs a forward"):
        stage.backward(drawn(SHAPES))
    stage.forward(drawn(SHAPES))
    with pytest.raises(ValueError, match="dy has shapes .* the last output has"):
        stage.backward(drawn(SHAPES))
    with pytest.raises(ValueError, match="reach must be at least 1, not 0"):
        AllGather(0)


def test_arrays_that_are_not_in_rows_are_put_in_rows():
    x = drawn([(3, 7, 2), (3, 4, 2)])
    y = on(Device("cpu"), AllGather()).forward([each.transpose(0, 2, 1) for each in x])
    np.testing.assert_array_equal(y[0], np.concatenate(x, axis=1).transpose(0, 2, 1))


# --- two GPUs, without two GPUs


def on_two_gpus(gpus, stage, x, dy, rounds=3):
    """Run the stage forward and backward on emulated GPUs: (k, y, dx) for inputs times k."""
    second, first = Device("cuda:1"), Device("cuda:0")
    devices = (first, second)
    stage.to(devices, "float64")
    stage.connect((Link(first, second), Link(second, first)))
    assert gpus.now == 0, "the first device is the current one"

    def on_gpu(gpu, buffer, values):
        """buffer[...] = values, computed on the GPU; None: a new buffer."""
        with devices[gpu].current():
            buffer = gpus._empty(values.shape, values.dtype) if buffer is None else buffer
            buffer[...] = values
        gpus.run_some()
        return buffer

    def assigned(buffers, arrays, k):
        """The arrays times k, into the same buffers each round."""
        for gpu, array in enumerate(arrays):
            buffers[gpu] = on_gpu(gpu, buffers.get(gpu), k * array)
        return Both(buffers.values()) if len(arrays) > 1 else buffers[0]

    def kept(arrays):
        return [on_gpu(each.gpu, None, each) for each in listed(arrays)]

    inputs, found = ({}, {}), []
    for k in range(1, rounds + 1):
        y = kept(stage.forward(assigned(inputs[0], listed(x), k)))
        found.append((k, y, kept(stage.backward(assigned(inputs[1], listed(dy), k)))))
    gpus.run_all()
    return [(k, *([each.values for each in part] for part in (y, dx))) for k, y, dx in found]


def listed(arrays):
    return list(arrays) if isinstance(arrays, list | tuple) else [arrays]


def cases():
    x = drawn(SHAPES)
    for reach in (None, 2):
        dy = drawn([y.shape for y in literal(reach, x, None)], seed=1)
        yield f"reach {reach}", lambda reach=reach: AllGather(reach), x, dy, *literal(reach, x, dy)
    whole = drawn([(2, 3, 5, 11)], seed=2)[0]
    halves = [whole[..., :7], whole[..., 7:]]
    yield "gather", Gather, x, whole, [np.concatenate(x, axis=-1)], halves
    yield "broadcast", Broadcast, whole, [whole, 3 * whole], [whole, whole], [whole + 3 * whole]


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0])
@pytest.mark.parametrize("peers", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_on_two_gpus_the_same_numbers_come_out_in_whatever_order(case, peers, seed, monkeypatch):
    _, make, x, dy, y, dx = case
    for k, found, found_dx in on_two_gpus(Gpus(monkeypatch, peers=peers, seed=seed), make(), x, dy):
        for wanted, got in (*zip(y, found, strict=True), *zip(dx, found_dx, strict=True)):
            # k · (a + b) and k · a + k · b are rounded in different places.
            np.testing.assert_allclose(got, k * wanted, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0])
def test_without_the_waiting_wrong_numbers_come_out(case, monkeypatch):
    monkeypatch.setattr(Link, "take", lambda self: None)
    _, make, x, dy, y, dx = case
    wrong = 0
    for seed in range(20):
        for k, found, found_dx in on_two_gpus(Gpus(monkeypatch, seed=seed), make(), x, dy):
            pairs = (*zip(y, found, strict=True), *zip(dx, found_dx, strict=True))
            wrong += not all(np.allclose(got, k * wanted) for wanted, got in pairs)
    assert wrong
