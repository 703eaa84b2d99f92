"""How exactly a net computes: the option `precision`, and where numbers are rounded.

    fp32    float32 throughout (float64 where gradients are checked)
    tf32    products of Conv2D and Linear, forward and backward, take operands rounded to TF32
            (10 bits of mantissa) and add up in float32
    bf16    they take operands rounded to bfloat16 (7 bits) and add up in float32; and what a step
            of the net hands on, activations one way and their gradients the other, is bfloat16
    auto    tf32 on a GPU whose tensor cores know it, else fp32

Everything else is float32 in all of them: biases, LRN, pooling, softmax and loss, the gradients of
parameters, the parameters themselves (of which bf16 makes a rounded copy for a product) and SGD.
float32 keeps 23 bits; docs/precision.md has the table of ranges, and what it costs in accuracy.

On a GPU tensor cores do such products (`conv/tensor_core.py`, `products.py`), and an activation in
bf16 is an array of uint16 that holds the upper halves of float32 (`bfloat16.py`). On the host the
same is emulated, on float32 arrays: products get rounded copies, and the net rounds what a step
has given in place. That is slower than fp32; it is there to see what a precision does to
a training, without a GPU.
"""

from typing import Any

import numpy as np

from layers.device import Device, DeviceError, cuda, grid_for
from layers.fast.bfloat16 import from_bits, narrow, round_bf16, round_tf32, widen

PRECISIONS = ("auto", "fp32", "tf32", "bf16")

OLDEST = (8, 0)
"""The compute capability from which on tensor cores know TF32 and bfloat16 (Ampere)."""

BITS = np.dtype(np.uint16)
"""What holds a bfloat16: NumPy and CuPy have no such number."""


def settle(precision: str, device: Device, dtype: Any = np.float32) -> str:
    """`precision` for computing on `device` in `dtype`: "fp32", "tf32" or "bf16".

    "auto" comes down to one of them; in the simulator to fp32, since there a whole tile costs the
    same for an image of one pixel. ValueError for another name, or for float64 with anything but
    fp32; DeviceError for a GPU that is too old.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: use 'fp32', 'tf32', 'bf16' or 'auto'")
    if precision == "auto":
        quick = device.is_cuda and not device.is_simulated and dtype == np.float32
        precision = "tf32" if quick and device.capability >= OLDEST else "fp32"
    if precision == "fp32":
        return precision
    if dtype != np.float32:
        raise ValueError(f"precision {precision!r} rounds float32, not {dtype}; use 'fp32'")
    if device.is_cuda and device.capability < OLDEST:
        have, need = (".".join(map(str, each)) for each in (device.capability, OLDEST))
        raise DeviceError(
            f"precision {precision!r} needs a GPU of compute capability {need} or more, and "
            f"{device.name} has {have}; use 'fp32'"
        )
    return precision


def storage_of(precision: str, device: Device, dtype: Any) -> np.dtype:
    """The dtype of activations on `device`."""
    return BITS if precision == "bf16" and device.is_cuda else np.dtype(dtype)


def described(precision: str, device: Device) -> str:
    """`precision` for a reader, who should know where it is not the real thing."""
    return precision + ("" if device.is_cuda or precision == "fp32" else ", emulated on the host")


def host_values(array: Any) -> np.ndarray:
    """An array of activations as numbers on the host, float32 for bfloat16."""
    array = Device.to_host(array)
    return from_bits(array) if array.dtype == BITS else array


# --- kernels
#
# Both: one thread per element of flat arrays: coalesced, no races, deterministic. x is float32 or
# float64, or in scale_kernel the bits of bfloat16.


@cuda.jit
def bits_kernel(x, bits):
    i = cuda.grid(1)
    if i < x.size:
        bits[i] = narrow(x[i], bits)


@cuda.jit
def scale_kernel(x, factor):
    i = cuda.grid(1)
    if i < x.size:
        x[i] = narrow(widen(x[i]) * factor, x)


# --- launches


def round_into(device: Device, precision: str, x: Any, out: Any) -> None:
    """out = x rounded to tf32 or bf16; on a GPU to bf16, out being uint16. out may be x."""
    flat = x.reshape(-1), out.reshape(-1)
    if device.is_cuda:
        bits_kernel[grid_for(x.size)](*flat)
    elif precision == "bf16":
        round_bf16(*flat)
    else:
        round_tf32(*flat)


def scale(device: Device, x: Any, factor: float) -> None:
    """x *= factor, an array of activations."""
    if device.is_cuda:
        number = np.float64 if x.dtype == np.float64 else np.float32
        scale_kernel[grid_for(x.size)](x.reshape(-1), number(factor))
    else:
        x *= factor
