"""The option `precision`: what it comes down to, what is refused, and what the host rounds."""

from types import SimpleNamespace

import numpy as np
import oracles
import pytest

from layers import Conv2D, Device, DeviceError, Linear, ReLU, SoftmaxCrossEntropy
from layers.fast.bfloat16 import from_bits, round_bf16, round_tf32, to_bits
from layers.fast.linear import LinearStep
from layers.fast.precision import (
    BITS,
    bits_kernel,
    described,
    host_values,
    round_into,
    scale,
    settle,
    storage_of,
)

ROUND = {"tf32": round_tf32, "bf16": round_bf16}
BITS_KEPT = {"tf32": 10, "bf16": 7}


def rounded(values, precision):
    """A rounded float32 copy."""
    values = np.ascontiguousarray(values, np.float32)
    return ROUND[precision](values, np.empty_like(values))


def real_gpu(capability):
    """A `Device` for a GPU of this compute capability, which nobody has."""
    device = Device("cpu")
    device.name, device.is_cuda, device.is_simulated = "cuda:3", True, False
    asked = []

    def gpu(index):
        asked.append(index)
        return SimpleNamespace(compute_capability=capability)

    device.xp = SimpleNamespace(cuda=SimpleNamespace(Device=gpu), asked=asked)
    return device


# --- what it comes down to


@pytest.mark.parametrize(
    ("capability", "version"), [("75", (7, 5)), ("80", (8, 0)), ("90", (9, 0)), ("120", (12, 0))]
)
def test_the_capability_is_that_of_the_gpu(capability, version):
    gpu = real_gpu(capability)
    assert gpu.capability == version
    assert gpu.xp.asked == [3]
    assert settle("auto", gpu) == ("fp32" if version < (8, 0) else "tf32")
    assert settle("auto", gpu, np.float64) == "fp32"


def test_the_host_has_no_capability():
    with pytest.raises(ValueError, match="cpu has no compute capability"):
        _ = Device("cpu").capability


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
    with pytest.raises(ValueError, match=f"'{precision}' rounds float32, not float64; use 'fp32'"):
        Linear(2, 3).to(device, np.float64, precision)
    layer = Linear(2, 3).to(device, precision=precision)
    with pytest.raises(ValueError, match="rounds float32"):
        layer.to(device, np.float64)  # the precision stays what it was
    assert layer.to(device, np.float64, "fp32").dtype == np.float64


def test_another_name_is_refused_with_those_there_are(device):
    with pytest.raises(ValueError, match="'fp16': use 'fp32', 'tf32', 'bf16' or 'auto'"):
        ReLU().to(device, precision="fp16")


def test_a_layer_keeps_its_precision_until_told(device):
    layer = ReLU()
    assert (layer.precision, layer.storage) == ("fp32", np.float32)
    layer.to(device, precision="bf16")
    assert (layer.to(device).precision, layer.dtype) == ("bf16", np.float32)
    assert layer.storage == (np.uint16 if device.is_cuda else np.float32)
    assert layer.to(device, precision="auto").precision == "fp32"
    assert layer.storage == np.float32


def test_storage_is_bits_in_bf16_on_a_gpu_alone(device):
    assert storage_of("bf16", device, np.float32) == (BITS if device.is_cuda else np.float32)
    assert storage_of("tf32", device, np.float32) == np.float32
    assert storage_of("fp32", device, np.float64) == np.float64


def test_what_is_emulated_says_so(device):
    assert described("fp32", device) == "fp32"
    assert described("bf16", device) == ("bf16" + (", emulated on the host", "")[device.is_cuda])


# --- the algorithms of a convolution


def test_tensor_cores_ask_for_a_precision(cuda_device):
    conv = Conv2D(3, 4, 3, algorithm="tensor")
    with pytest.raises(ValueError, match="'tensor' rounds .* precision 'tf32' or 'bf16'"):
        conv.to(cuda_device)
    assert conv.to(cuda_device, precision="tf32").chosen() == "tensor"
    with pytest.raises(ValueError, match="'tensor' does not run on cpu; use 'auto' or 'host'"):
        conv.to("cpu")


@pytest.mark.parametrize("algorithm", ["direct", "tiled"])
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_other_rungs_know_fp32_alone(algorithm, precision, cuda_device):
    conv = Conv2D(3, 4, 3, algorithm=algorithm)
    with pytest.raises(ValueError, match=f"'{algorithm}' .*'fp32', not '{precision}'; .*'tensor'"):
        conv.to(cuda_device, precision=precision)
    assert conv.precision == "fp32"


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_auto_takes_tensor_cores_on_a_gpu(precision, device):
    conv = Conv2D(3, 4, 3).to(device, precision=precision)
    assert conv.chosen() == ("tensor" if device.is_cuda else "host")


# --- what comes in


def test_float32_is_refused_where_bfloat16_is_kept(cuda_device):
    layer = ReLU().to(cuda_device, precision="bf16")
    with pytest.raises(ValueError, match="x is float32, the layer computes in bf16 and takes uint"):
        layer.forward(cuda_device.zeros((2, 3), np.float32))
    layer = ReLU().to(cuda_device, precision="tf32")
    with pytest.raises(ValueError, match="x is uint16, the layer computes in float32"):
        layer.forward(cuda_device.zeros((2, 3), np.uint16))


# --- what the host rounds


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("fused", [False, True])
def test_products_of_linear_take_rounded_operands(fused, precision):
    rng = np.random.default_rng(3)
    layer = Linear(7, 5).to("cpu", precision=precision)
    layer.weight.value[...], layer.bias.value[...] = rng.standard_normal((5, 7)), rng.random(5)
    x = rng.standard_normal((4, 7)).astype(np.float32)
    dy = rng.standard_normal((4, 5)).astype(np.float32)
    kept = x.copy(), dy.copy(), layer.weight.value.copy()
    step = LinearStep(layer) if fused else layer
    y, dx = step.forward(x).copy(), step.backward(dy)
    r_x, r_w, r_dy = (rounded(each, precision).astype(float) for each in (x, kept[2], dy))
    assert np.abs(r_x - x).max() > 2.0 ** -(BITS_KEPT[precision] + 4)
    oracles.assert_close(y, r_x @ r_w.T + layer.bias.value, np.float32)
    oracles.assert_close(dx, r_dy @ r_w, np.float32)
    oracles.assert_close(layer.weight.grad, r_dy.T @ r_x, np.float32)
    # A sum is no product: it takes what came.
    np.testing.assert_array_equal(layer.bias.grad, dy.sum(axis=0))
    for now, before in zip((x, dy, layer.weight.value), kept, strict=True):
        np.testing.assert_array_equal(now, before)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_products_of_a_convolution_take_rounded_operands(precision):
    rng = np.random.default_rng(4)
    conv = Conv2D(4, 6, 3, stride=2, padding=(1, 0), groups=2).to("cpu", precision=precision)
    for parameter in conv.parameters():
        parameter.value[...] = rng.standard_normal(parameter.value.shape)
    x = rng.standard_normal((2, 5, 6, 4)).astype(np.float32)
    y = conv.forward(x).copy()
    dy = rng.standard_normal(y.shape).astype(np.float32)
    dx = conv.backward(dy)
    r_x, r_w, r_dy = (rounded(v, precision).astype(float) for v in (x, conv.weight.value, dy))
    right = oracles.conv(r_x, r_w, conv.bias.value, lambda shape: r_dy, 2, 1, 0, 2)
    mine = y, dx, conv.weight.grad
    for each, wanted in zip(mine, right[:3], strict=True):
        oracles.assert_close(each, wanted, np.float32)
    np.testing.assert_array_equal(conv.bias.grad, dy.reshape(-1, 6).sum(axis=0))


def test_a_training_step_allocates_nothing_for_its_copies():
    layer = Linear(7, 5).to("cpu", precision="bf16")
    x, dy = np.ones((4, 7), np.float32), np.ones((4, 5), np.float32)
    taken = []
    for _ in range(2):
        layer.forward(x)
        layer.backward(dy)
        taken.append((layer.x.ctypes.data, layer.w.ctypes.data))
    assert taken[0] == taken[1]
    assert layer.x.ctypes.data != x.ctypes.data


def test_the_losss_gradient_is_bfloat16_in_bf16(device):
    logits = np.random.default_rng(5).standard_normal((3, 5)).astype(np.float32)
    right = SoftmaxCrossEntropy().to("cpu")
    value = right.forward(rounded(logits, "bf16"), np.array([1, 0, 4]))
    for fuse in (False, True):
        loss = SoftmaxCrossEntropy(fuse).to(device, precision="bf16")
        x = device.array(to_bits(logits) if device.is_cuda else rounded(logits, "bf16"))
        assert loss.forward(x, np.array([1, 0, 4])) == pytest.approx(value, rel=1e-6)
        assert loss.probabilities.dtype == np.float32
        oracles.assert_close(device.to_host(loss.probabilities), right.probabilities, np.float32)
        dlogits = loss.backward()
        assert dlogits.dtype == loss.storage
        dlogits = host_values(dlogits)
        np.testing.assert_array_equal(dlogits, rounded(dlogits, "bf16"))
        # One rounding, and those of float32 in the exponentials.
        np.testing.assert_allclose(dlogits, right.backward(), rtol=2**-8 + 1e-6)


# --- its two kernels

SPECIAL = [0.0, -0.0, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, -3e38, 3.4e38, 1e-40, np.inf, -np.inf, np.nan]


def test_bits_are_those_of_the_host(cuda_device):
    rng = np.random.default_rng(6)
    x = np.concatenate([SPECIAL, rng.standard_normal(250) * 10.0 ** rng.integers(-30, 30, 250)])
    x = x.astype(np.float32)
    out = cuda_device.empty(x.shape, BITS)
    round_into(cuda_device, "bf16", cuda_device.array(x), out)
    np.testing.assert_array_equal(cuda_device.to_host(out), to_bits(x))


def test_a_kernel_may_be_given_more_threads_than_elements(cuda_device):
    bits = cuda_device.array([1, 2, 3], BITS)
    bits_kernel[1, 64](cuda_device.zeros((2,), np.float32), bits[:2])
    np.testing.assert_array_equal(cuda_device.to_host(bits), [0, 0, 3])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, BITS])
def test_scaling(dtype, device):
    if dtype == BITS and not device.is_cuda:
        pytest.skip("the host keeps no bits")
    values = rounded(np.random.default_rng(7).standard_normal((3, 50)), "bf16")
    x = device.array(to_bits(values) if dtype == BITS else values.astype(dtype))
    scale(device, x, 0.3)
    wanted = values * np.float32(0.3) if dtype != np.float64 else values.astype(float) * 0.3
    found = device.to_host(x)
    np.testing.assert_array_equal(found, to_bits(wanted) if dtype == BITS else wanted)


def test_host_values_of_either_kind(device):
    numbers = np.array([[1.5, -2.0]], np.float32)
    for array in (numbers, to_bits(numbers)):
        found = host_values(device.array(array))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, numbers)
    assert host_values(np.zeros(2)).dtype == np.float64
    assert from_bits(to_bits(numbers)).tolist() == numbers.tolist()
