"""Precisions: how many bits of the operands a net multiplies, and what its activations are.

    fp32    float32 throughout (float64 where gradients are checked)
    tf32    products of Conv2D and Linear, forward and backward, take operands rounded to TF32
            (10 bits of mantissa) and add in float32
    bf16    they take operands rounded to bfloat16 (7 bits) and add in float32; activations between
            the steps of a net, and gradients with respect to them, are bfloat16
    auto    tf32 on a GPU with tensor cores for it, else fp32

Everything else is float32 in all of them: biases, LRN, pooling, softmax and loss, the gradients of
parameters, the parameters themselves (bf16 multiplies with rounded copies of them) and SGD.
float32 has 23 bits; docs/precision.md has the table of ranges, and the cost in accuracy.

On a GPU tensor cores compute these products (`conv/tensor_core.py`, `gemm.py`), and a bf16
activation is an array of uint16 that holds the upper halves of float32 (`bfloat16.py`). The host
emulates both on float32 arrays: products take rounded copies, and what a step returns is rounded in
place (`conversions.py`). That is slower than fp32; it shows without a GPU what a precision does to
training.
"""

from typing import Any

import numpy as np
from numba import float32

from layers.device import Device, DeviceError, cuda, grid_for
from layers.fast.bfloat16 import narrow, round_bf16, round_tf32, widen
from layers.fast.conv.ptx import is_aligned, load_vec8, store_vec8

PRECISIONS = ("auto", "fp32", "tf32", "bf16")

OLDEST = (8, 0)
"""The first compute capability whose tensor cores have TF32 and bfloat16 (Ampere)."""

BITS = np.dtype(np.uint16)
"""What holds a bfloat16: NumPy has no such type."""


def capability(device: Any) -> tuple[int, int]:
    """The GPU's compute capability, such as (8, 0); the simulator has all features: (9, 0)."""
    if not device.is_cuda:
        raise ValueError(f"{device.name} has no compute capability")
    if device.is_simulated:
        return 9, 0
    digits = device.xp.cuda.Device(device.index).compute_capability
    return int(digits[:-1]), int(digits[-1])


def settle(precision: str, device: Device, dtype: Any = np.float32) -> str:
    """`precision` for computing on `device` in `dtype`: "fp32", "tf32" or "bf16".

    "auto" is fp32 in the simulator, where a whole tile takes as long for an image of one pixel.
    ValueError for another name, or for float64 with anything but fp32; DeviceError for a GPU that
    is too old.
    """
    dtype = np.dtype(dtype)
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: use 'fp32', 'tf32', 'bf16' or 'auto'")
    if precision == "auto":
        tensor_cores = device.is_cuda and not device.is_simulated and dtype == np.float32
        precision = "tf32" if tensor_cores and capability(device) >= OLDEST else "fp32"
    if precision == "fp32":
        return precision
    if dtype != np.float32:
        raise ValueError(f"precision {precision!r} rounds float32, not {dtype}; use 'fp32'")
    if device.is_cuda and capability(device) < OLDEST:
        have, need = (".".join(map(str, each)) for each in (capability(device), OLDEST))
        raise DeviceError(
            f"precision {precision!r} needs a GPU of compute capability {need} or more, and "
            f"{device.name} has {have}; use 'fp32'"
        )
    return precision


def storage_of(precision: str, device: Device, dtype: Any) -> np.dtype:
    """The dtype of activations on `device`."""
    return BITS if precision == "bf16" and device.is_cuda else np.dtype(dtype)


def described(precision: str, device: Device) -> str:
    """`precision` for a reader; says where it is emulated."""
    return precision + ("" if device.is_cuda or precision == "fp32" else ", emulated on the host")


# --- kernels
#
# Both: eight elements of flat arrays a thread, by 16 bytes at a time where these begin at multiples
# of 16 bytes; fewer, one by one, at the end: coalesced, no races, deterministic.

PER_THREAD = 8


@cuda.jit
def to_bfloat16_kernel(x, bits, aligned):
    values = cuda.local.array(PER_THREAD, float32)
    i = PER_THREAD * cuda.grid(1)
    if aligned and i + PER_THREAD <= x.size:
        load_vec8(values, 0, x, i)
        store_vec8(bits, i, values, 0)
    else:
        for j in range(i, min(i + PER_THREAD, x.size)):
            bits[j] = narrow(x[j], bits)


@cuda.jit
def from_bfloat16_kernel(bits, x, aligned):
    values = cuda.local.array(PER_THREAD, float32)
    i = PER_THREAD * cuda.grid(1)
    if aligned and i + PER_THREAD <= x.size:
        load_vec8(values, 0, bits, i)
        store_vec8(x, i, values, 0)
    else:
        for j in range(i, min(i + PER_THREAD, x.size)):
            x[j] = widen(bits[j])


# --- launches


def round_into(device: Device, precision: str, x: Any, out: Any) -> None:
    """out = x rounded to tf32 or bf16; on a GPU to bf16, out being uint16. out may be x."""
    flat = x.reshape(-1), out.reshape(-1)
    if device.is_cuda:
        to_bfloat16_kernel[_grid(x)](*flat, is_aligned(x) and is_aligned(out))
    elif precision == "bf16":
        round_bf16(*flat)
    else:
        round_tf32(*flat)


def widen_into(bits: Any, x: Any) -> None:
    """x (float32) = the numbers that have these bfloat16 bits (uint16), on a GPU; exact."""
    aligned = is_aligned(x) and is_aligned(bits)
    from_bfloat16_kernel[_grid(x)](bits.reshape(-1), x.reshape(-1), aligned)


def _grid(x: Any) -> Any:
    return grid_for(-(-x.size // PER_THREAD))
