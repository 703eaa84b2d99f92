"""The option `precision`: what it comes down to, what is refused, and what the host rounds."""

from types import SimpleNamespace

import numpy as np
import oracles
import pytest

from layers import Conv2D, Device, DeviceError, Dropout, Linear, LocalResponseNorm, ReLU
from layers.fast.bfloat16 import from_bits, round_bf16, round_tf32, to_bits
from layers.fast.host.im2col import Im2colConv
from layers.fast.linear import LinearStep
from layers.fast.lrn import LRNRows
from layers.fast.plan import plan
from layers.fast.precision import (
    BITS,
    capability,
    described,
    from_bfloat16_kernel,
    round_into,
    settle,
    storage_of,
    to_bfloat16_kernel,
    widen_into,
)
from tinyconv import Sequential

ROUND = {"tf32": round_tf32, "bf16": round_bf16}
BITS_KEPT = {"tf32": 10, "bf16": 7}


def rounded(values, precision):
    """A rounded float32 copy."""
    values = np.ascontiguousarray(values, np.float32)
    return ROUND[precision](values, np.empty_like(values))


def real_gpu(version):
    """A `Device` for a GPU of this compute capability, which nobody has."""
    device = Device("cpu")
    device.name, device.index, device.is_cuda, device.is_simulated = "cuda:3", 3, True, False
    asked = []

    def gpu(index):
        asked.append(index)
        return SimpleNamespace(compute_capability=version)

    device.xp = SimpleNamespace(cuda=SimpleNamespace(Device=gpu), asked=asked)
    return device


# --- what it comes down to


@pytest.mark.parametrize(
    ("digits", "version"), [("75", (7, 5)), ("80", (8, 0)), ("90", (9, 0)), ("120", (12, 0))]
)
def test_the_capability_is_that_of_the_gpu(digits, version):
    gpu = real_gpu(digits)
    assert capability(gpu) == version
    assert gpu.xp.asked == [3]
    assert settle("auto", gpu) == ("fp32" if version < (8, 0) else "tf32")
    assert settle("auto", gpu, np.float64) == "fp32"


def test_the_host_has_no_capability():
    with pytest.raises(ValueError, match="cpu has no compute capability"):
        capability(Device("cpu"))


def test_the_simulator_has_the_features_of_every_gpu(cuda_device):
    if not cuda_device.is_simulated:
        pytest.skip("there is a GPU")
    assert capability(cuda_device) == (9, 0)


def test_auto_is_fp32_where_nothing_is_gained(device):
    assert settle("auto", device, np.float32) == settle("auto", device, np.float64) == "fp32"


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_an_old_gpu_is_refused_by_name_and_version(precision):
    with pytest.raises(DeviceError) as caught:
        settle(precision, real_gpu("75"))
    wanted = (
        f"precision '{precision}' needs a GPU of compute capability 8.0 or more, and cuda:3 has "
        "7.5; use 'fp32'"
    )
    assert str(caught.value) == wanted
    assert settle("fp32", real_gpu("75")) == "fp32"


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_float64_is_not_rounded(precision, device):
    said = f"'{precision}' rounds float32, not float64; use 'fp32'"
    with pytest.raises(ValueError, match=said):
        settle(precision, device, np.float64)
    net = Sequential([Linear(2, 3)])
    with pytest.raises(ValueError, match=said):
        net.to(device, np.float64, precision)
    net.to(device, precision=precision)
    with pytest.raises(ValueError, match="rounds float32"):
        net.to(device, np.float64)  # the precision stays what it was
    assert (net.dtype, net.precision) == (np.float32, precision)
    assert net.to(device, np.float64, "fp32").dtype == np.float64


def test_another_name_is_refused_with_those_there_are(device):
    said = "'fp16': use 'fp32', 'tf32', 'bf16' or 'auto'"
    with pytest.raises(ValueError, match=said):
        settle("fp16", device)
    with pytest.raises(ValueError, match=said):
        Sequential([ReLU()]).to(device, precision="fp16")


def test_a_net_keeps_its_precision_until_told(device):
    net = Sequential([LocalResponseNorm(3)])
    assert net.precision == "fp32"
    net.to(device, precision="bf16")
    assert (net.to(device).precision, net.dtype) == ("bf16", np.float32)
    assert net.steps[1].storage == storage_of("bf16", device, np.float32)
    assert net.to(device, precision="auto").precision == "fp32"
    assert net.steps[0].storage == np.float32


def test_storage_is_bits_in_bf16_on_a_gpu_alone(device):
    assert storage_of("bf16", device, np.float32) == (BITS if device.is_cuda else np.float32)
    assert storage_of("tf32", device, np.float32) == np.float32
    assert storage_of("fp32", device, np.float64) == np.float64


def test_what_is_emulated_says_so(device):
    assert described("fp32", device) == "fp32"
    assert described("bf16", device) == ("bf16" + (", emulated on the host", "")[device.is_cuda])


# --- what comes in


def test_float32_is_refused_where_bfloat16_is_kept(cuda_device):
    norm = LocalResponseNorm(3).to(cuda_device)
    norm.name = "norm1"
    (step,) = plan([norm], cuda_device, np.float32, "bf16", float32_ends=False)
    assert type(step) is LRNRows
    with pytest.raises(ValueError) as caught:
        step.forward(cuda_device.zeros((2, 3), np.float32))
    assert str(caught.value) == "norm1: x is float32, this step takes bfloat16 as uint16"
    step.forward(cuda_device.zeros((2, 3), BITS))
    with pytest.raises(ValueError) as caught:
        step.backward(cuda_device.zeros((2, 3), np.float32))
    assert str(caught.value) == "norm1: dy is float32, this step takes bfloat16 as uint16"
    with pytest.raises(ValueError, match="norm1: x is list, this step takes bfloat16 as uint16"):
        step.forward([[1, 2, 3]])
    with pytest.raises(ValueError, match=r"norm1: x has shape \(5,\), expected \(N, ...\)"):
        step.forward(cuda_device.zeros((5,), BITS))
    with pytest.raises(ValueError, match=r"norm1: dy has shape \(2, 4\), the last output has"):
        step.backward(cuda_device.zeros((2, 4), BITS))


def test_bfloat16_is_refused_where_float32_is_kept(device):
    for precision in ("fp32", "tf32") if device.is_cuda else ("fp32", "tf32", "bf16"):
        step = LinearStep([Linear(3, 4).to(device)], device, np.float32, precision)
        with pytest.raises(ValueError, match="x is uint16, the layer computes in float32"):
            step.forward(device.zeros((2, 3), np.uint16))


# --- what the host rounds


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("behind", [0, 1, 2])
def test_products_of_linear_take_rounded_operands(behind, precision):
    rng = np.random.default_rng(3)
    layers = [Linear(7, 5), ReLU(), Dropout(0.4)][: 1 + behind]
    layer = layers[0].to("cpu")
    layer.weight.value[...], layer.bias.value[...] = rng.standard_normal((5, 7)), rng.random(5)
    x = rng.standard_normal((4, 7)).astype(np.float32)
    dy = rng.standard_normal((4, 5)).astype(np.float32)
    kept = x.copy(), dy.copy(), layer.weight.value.copy()
    step = LinearStep(layers, Device("cpu"), np.float32, precision)
    y, dx = step.forward(x).copy(), step.backward(dy)
    r_x, r_w = (rounded(each, precision).astype(float) for each in (x, kept[2]))
    assert np.abs(r_x - x).max() > 2.0 ** -(BITS_KEPT[precision] + 4)
    z = r_x @ r_w.T + layer.bias.value
    on = (y > 0) if behind else np.ones(z.shape, bool)
    oracles.assert_close(y, np.where(on, z, 0), np.float32)
    if behind == 1:
        np.testing.assert_array_equal(on, z > 0)
    dz = np.where(on, dy, 0)
    r_dz = rounded(dz, precision).astype(float)
    oracles.assert_close(dx, r_dz @ r_w, np.float32)
    oracles.assert_close(layer.weight.grad, r_dz.T @ r_x, np.float32)
    # A sum is no product: it takes what came.
    np.testing.assert_array_equal(layer.bias.grad, dz.sum(axis=0))
    for now, before in zip((x, dy, layer.weight.value), kept, strict=True):
        np.testing.assert_array_equal(now, before)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("relu", [False, True])
def test_products_of_a_convolution_take_rounded_operands(relu, precision):
    rng = np.random.default_rng(4)
    conv = Conv2D(4, 6, 3, stride=2, padding=(1, 0), groups=2).to("cpu")
    for parameter in conv.parameters():
        parameter.value[...] = rng.standard_normal(parameter.value.shape)
    step = Im2colConv([conv] + [ReLU()] * relu, Device("cpu"), np.float32, precision)
    x = rng.standard_normal((2, 5, 6, 4)).astype(np.float32)
    y = step.forward(x).copy()
    dy = rng.standard_normal(y.shape).astype(np.float32)
    kept = x.copy(), dy.copy(), conv.weight.value.copy()
    dx = step.backward(dy)
    dz = np.where(y > 0, dy, 0) if relu else dy
    r_x, r_w, r_dz = (rounded(v, precision).astype(float) for v in (x, conv.weight.value, dz))
    right = oracles.conv(r_x, r_w, conv.bias.value, lambda shape: r_dz, 2, 1, 0, 2)
    z = np.maximum(right[0], 0) if relu else right[0]
    for each, wanted in zip((y, dx, conv.weight.grad), (z, *right[1:3]), strict=True):
        oracles.assert_close(each, wanted, np.float32)
    np.testing.assert_array_equal(conv.bias.grad, dz.reshape(-1, 6).sum(axis=0))
    for now, before in zip((x, dy, conv.weight.value), kept, strict=True):
        np.testing.assert_array_equal(now, before)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_convolution_allocates_nothing_for_its_rounded_copies(precision):
    conv = Conv2D(4, 6, 3).to("cpu")
    step = Im2colConv([conv], Device("cpu"), np.float32, precision)
    x, dy = np.ones((2, 5, 6, 4), np.float32), np.ones((2, 3, 4, 6), np.float32)
    taken = []
    for _ in range(2):
        step.forward(x)
        step.backward(dy)
        taken.append([array.ctypes.data for array in step.buffer._flat.values()])
    assert taken[0] == taken[1] and step.x_product is not x


# --- its two kernels

SPECIAL = [0.0, -0.0, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, -3e38, 3.4e38, 1e-40, np.inf, -np.inf, np.nan]


def test_bits_are_those_of_the_host(cuda_device):
    rng = np.random.default_rng(6)
    x = np.concatenate([SPECIAL, rng.standard_normal(250) * 10.0 ** rng.integers(-30, 30, 250)])
    x = x.astype(np.float32)
    out = cuda_device.empty(x.shape, BITS)
    round_into(cuda_device, "bf16", cuda_device.array(x), out)
    np.testing.assert_array_equal(cuda_device.to_host(out), to_bits(x))


def test_numbers_are_those_of_the_host(cuda_device):
    bits = np.random.default_rng(7).integers(2**16, size=(3, 50)).astype(BITS)
    out = cuda_device.empty(bits.shape, np.float32)
    widen_into(cuda_device.array(bits), out)
    words = cuda_device.to_host(out).view(np.uint32)
    np.testing.assert_array_equal(words, from_bits(bits).view(np.uint32))


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_the_host_rounds_into_a_copy_or_in_place(precision):
    x = np.random.default_rng(8).standard_normal((3, 50)).astype(np.float32)
    wanted, out = rounded(x, precision), np.empty_like(x)
    round_into(Device("cpu"), precision, x, out)
    np.testing.assert_array_equal(out, wanted)
    round_into(Device("cpu"), precision, x, x)
    np.testing.assert_array_equal(x, wanted)


def test_a_kernel_may_be_given_more_threads_than_elements(cuda_device):
    bits = cuda_device.array([1, 2, 3], BITS)
    to_bfloat16_kernel[1, 64](cuda_device.zeros((2,), np.float32), bits[:2], True)
    np.testing.assert_array_equal(cuda_device.to_host(bits), [0, 0, 3])
    x = cuda_device.array([1, 2, 3], np.float32)
    from_bfloat16_kernel[1, 64](cuda_device.zeros((2,), BITS), x[:2], True)
    np.testing.assert_array_equal(cuda_device.to_host(x), [0, 0, 3])
