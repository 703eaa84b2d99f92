"""The steps between float32 and bfloat16: values, gradients, refusals, whose arrays they keep."""

import numpy as np
import pytest

from layers import Device, Flatten, Linear, Tanh
from layers.fast.bfloat16 import from_bits, round_bf16, to_bits
from layers.fast.conversions import FlattenStep, RoundToBFloat16, ToBFloat16, ToFloat32
from layers.fast.precision import BITS

SHAPE = (2, 6, 7, 5)
SPECIAL = [0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, -3e38, 3.4e38, 1e-40, np.inf, -np.inf, np.nan]


def numbers(seed=0, shape=SHAPE):
    """float32 of all magnitudes; ties, infinities and a NaN among them."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(shape) * 10.0 ** rng.integers(-30, 30, shape)).astype(np.float32)
    x.reshape(-1)[: len(SPECIAL)] = SPECIAL
    return x


def rounded(x):
    return round_bf16(x, np.empty(x.shape, np.float32))


def address(array):
    """Where an array's memory begins."""
    return array.data.ptr if hasattr(array, "get") else array.ctypes.data


@pytest.fixture
def conversion(request, cuda_device):
    """Of the class that the test is about, on its device; and the dtypes of x and of y."""
    kind = request.param
    device = Device("cpu") if kind is RoundToBFloat16 else cuda_device
    dtypes = {ToBFloat16: ("float32", BITS), ToFloat32: (BITS, "float32")}
    return kind(device, np.float32), *dtypes.get(kind, ("float32", "float32"))


every_conversion = pytest.mark.parametrize(
    "conversion", [ToBFloat16, ToFloat32, RoundToBFloat16], indirect=True
)


def stored(values, dtype):
    """float32 values as an array of `dtype`, bits if it is uint16."""
    return to_bits(values) if dtype == BITS else values.copy()


# --- values


def test_to_bfloat16_rounds_x_and_widens_the_gradient(cuda_device):
    step, x, dy = ToBFloat16(cuda_device, np.float32), numbers(), to_bits(numbers(1))
    y = cuda_device.to_host(step.forward(cuda_device.array(x)))
    assert y.dtype == BITS
    np.testing.assert_array_equal(y, to_bits(x))
    dx = cuda_device.to_host(step.backward(cuda_device.array(dy)))
    assert dx.dtype == np.float32
    np.testing.assert_array_equal(dx, from_bits(dy))


def test_to_float32_widens_x_and_rounds_the_gradient(cuda_device):
    step, x, dy = ToFloat32(cuda_device, np.float32), to_bits(numbers()), numbers(1)
    y = cuda_device.to_host(step.forward(cuda_device.array(x)))
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, from_bits(x))
    dx = cuda_device.to_host(step.backward(cuda_device.array(dy)))
    assert dx.dtype == BITS
    np.testing.assert_array_equal(dx, to_bits(dy))


def test_the_two_undo_each_other_on_bfloat16_numbers(cuda_device):
    there, back = (kind(cuda_device, np.float32) for kind in (ToFloat32, ToBFloat16))
    bits = to_bits(numbers())
    y = back.forward(there.forward(cuda_device.array(bits)))
    np.testing.assert_array_equal(cuda_device.to_host(y), bits)


def test_the_host_rounds_both_in_place():
    step, x, dy = RoundToBFloat16(Device("cpu"), np.float32), numbers(), numbers(1)
    wanted = rounded(x), rounded(dy)
    assert step.forward(x) is x and step.backward(dy) is dy
    np.testing.assert_array_equal(x, wanted[0])
    np.testing.assert_array_equal(dy, wanted[1])


@every_conversion
def test_strided_arrays_give_the_same(conversion):
    step, of_x, of_y = conversion
    x, dy = (step.device.array(stored(numbers(), dtype)) for dtype in (of_x, of_y))
    if isinstance(step, RoundToBFloat16):  # which copies only what comes from outside the net
        step.first = step.last = Tanh()
        step.last.y = dy

    def results(x, dy):
        return [step.device.to_host(each).copy() for each in (step.forward(x), step.backward(dy))]

    wanted = results(x, dy)
    spread = [step.device.array(np.repeat(step.device.to_host(each), 2, -1)) for each in (x, dy)]
    for mine, right in zip(results(*(each[..., ::2] for each in spread)), wanted, strict=True):
        np.testing.assert_array_equal(mine, right)


# --- whose arrays they are


@pytest.mark.parametrize("kind", [ToBFloat16, RoundToBFloat16])
def test_what_comes_in_from_outside_is_left_as_it_was(kind, cuda_device):
    device = Device("cpu") if kind is RoundToBFloat16 else cuda_device
    layer = Tanh().to(device)
    step, x = kind(device, np.float32, first=layer), numbers()
    given = device.array(x)
    y = device.to_host(step.forward(given))
    np.testing.assert_array_equal(device.to_host(given), x)
    np.testing.assert_array_equal(y, stored(rounded(x), y.dtype))


@pytest.mark.parametrize("kind", [ToFloat32, RoundToBFloat16])
def test_a_gradient_from_outside_is_left_as_it_was(kind, cuda_device):
    device = Device("cpu") if kind is RoundToBFloat16 else cuda_device
    layer = Tanh().to(device)
    step, dy = kind(device, np.float32, last=layer), numbers()
    layer.forward(device.zeros(SHAPE, np.float32))
    given = device.array(dy)
    dx = device.to_host(step.backward(given))
    np.testing.assert_array_equal(device.to_host(given), dy)
    np.testing.assert_array_equal(dx, stored(rounded(dy), dx.dtype))


@every_conversion
def test_no_gradient_passes_as_none(conversion):
    step, of_x, _ = conversion
    step.forward(step.device.array(stored(numbers(), of_x)))
    assert step.backward(None) is None


@every_conversion
def test_the_second_step_allocates_nothing(conversion):
    step, of_x, of_y = conversion
    x, dy = (step.device.array(stored(numbers(), dtype)) for dtype in (of_x, of_y))
    y, dx = step.forward(x), step.backward(dy)
    places = address(y), address(dx)
    assert step.forward(x) is y and step.backward(dy) is dx
    smaller = step.forward(x[:1])  # the last batch of an evaluation
    assert smaller.shape == (1, *SHAPE[1:]) and address(smaller) == places[0]
    assert (address(step.forward(x)), address(step.backward(dy))) == places


# --- refusals


def one_line(caught):
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_x_and_dy_of_another_dtype_are_refused_at_the_ends_by_the_nets_layers(device):
    first, last = Tanh().to(device), Linear(5, 3).to(device)
    first.name, last.name = "tanh1", "fc2"
    begin, end = (ToBFloat16, ToFloat32) if device.is_cuda else (RoundToBFloat16,) * 2
    entry, exit = begin(device, np.float32, first=first), end(device, np.float32, last=last)
    for dtype in (np.float64, BITS):
        with pytest.raises(ValueError) as caught:
            entry.forward(device.zeros((2, 5), dtype))
        wanted = f"tanh1: x is {np.dtype(dtype)}, the layer computes in float32"
        assert one_line(caught) == wanted
    with pytest.raises(RuntimeError, match="fc2: backward.. needs a forward"):
        exit.backward(device.zeros((2, 3), np.float32))
    last.forward(device.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match="fc2: dy is float64, the layer computes in float32"):
        exit.backward(device.zeros((2, 3), np.float64))
    with pytest.raises(ValueError, match=r"fc2: dy has shape \(2, 4\), the last output has"):
        exit.backward(device.zeros((2, 4), np.float32))


def test_between_steps_another_dtype_is_refused(cuda_device):
    to_bf16, to_float32 = (kind(cuda_device, np.float32) for kind in (ToBFloat16, ToFloat32))
    floats, bits = (cuda_device.zeros((2, 3), dtype) for dtype in (np.float32, BITS))
    for call, wrong, wanted in (
        (to_bf16.forward, bits, "to bf16: an array of uint16, expected float32"),
        (to_bf16.backward, floats, "to bf16: an array of float32, expected uint16"),
        (to_float32.forward, floats, "to float32: an array of float32, expected uint16"),
        (to_float32.backward, bits, "to float32: an array of uint16, expected float32"),
    ):
        with pytest.raises(ValueError) as caught:
            call(wrong)
        assert one_line(caught) == wanted


# --- Flatten


def test_a_flatten_of_bfloat16_moves_no_number(cuda_device):
    layer = Flatten().to(cuda_device)
    layer.name = "flatten6"
    step = FlattenStep([layer], cuda_device, np.float32, "bf16")
    with pytest.raises(RuntimeError, match="flatten6: backward.. needs a forward"):
        step.backward(cuda_device.zeros((2, 210), BITS))
    x = cuda_device.array(to_bits(numbers()))
    y = step.forward(x)
    assert y.shape == (2, 6 * 7 * 5) and y.dtype == BITS and layer.y is y
    assert address(y) == address(x)
    dx = step.backward(y)
    assert dx.shape == SHAPE and address(dx) == address(x)
    assert step.notes() == {"flatten6": "(a view)"}


def test_a_flatten_of_bfloat16_refuses_float32_and_other_shapes(cuda_device):
    layer = Flatten().to(cuda_device)
    layer.name = "flatten6"
    step = FlattenStep([layer], cuda_device, np.float32, "bf16")
    with pytest.raises(ValueError) as caught:
        step.forward(cuda_device.zeros(SHAPE, np.float32))
    assert one_line(caught) == "flatten6: x is float32, this step takes bfloat16 as uint16"
    step.forward(cuda_device.zeros(SHAPE, BITS))
    with pytest.raises(
        ValueError, match=r"dy has shape \(2, 209\), the last output has \(2, 210\)"
    ):
        step.backward(cuda_device.zeros((2, 209), BITS))
