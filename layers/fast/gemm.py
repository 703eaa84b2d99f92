"""Matrix products by the vendor's library, in a step's precision (`precision.py`).

    out = a · b          a (M, K), b (K, N), out (M, N)

              the host                        a GPU: cuBLAS
    fp32      NumPy's BLAS (`threads.py`)     float32 or float64 throughout
    tf32      the same: the caller has        float32 operands, rounded by tensor cores
    bf16      rounded a and b                 a and b bfloat16, out float32 or bfloat16

Sums are float32 (in fp32: of the arrays' dtype). How cuBLAS converts float32 to TF32 is not
documented. bfloat16 is passed as uint16 to cuBLAS's gemmEx, which takes the types of its matrices
as arguments. It is called through `cublas.py`, or by CuPy where that finds no library. The
simulator uses NumPy. Not yet run on a GPU.
"""

from typing import Any

import numpy as np

from layers.device import Device
from layers.fast.bfloat16 import from_bits, round_tf32, to_bits
from layers.fast.cublas import cublas_of
from layers.fast.host import threads
from layers.fast.precision import BITS

ONES, ZEROS = (
    {kind: make(1, kind) for kind in (np.dtype(np.float32), np.dtype(np.float64))}
    for make in (np.ones, np.zeros)
)
KINDS = {np.dtype(np.float32): 0, np.dtype(np.float64): 1, BITS: 14}
"""cudaDataType: CUDA_R_32F, CUDA_R_64F, CUDA_R_16BF."""
NORMAL, TRANSPOSED, ANY_ALGORITHM = 0, 1, -1
SUMS_32, SUMS_64, SUMS_32_OF_TF32 = 68, 70, 77
"""cublasComputeType_t."""


def multiply(device: Device, *triples: tuple[Any, Any, Any], precision: str = "fp32") -> None:
    """out (M, N) = a (M, K) · b (K, N) for each (a, b, out), arrays of `device`.

    out is C-contiguous, a and b are, or their transposes. No product may need another's result.
    """
    if not device.is_cuda or (device.is_simulated and precision == "fp32"):
        threads.multiply(device, *triples)
        return
    library = cublas_of(device)
    for a, b, out in triples:
        if device.is_simulated:
            _simulated(a, b, out)
        elif library is not None:
            library.gemm_ex(*_arguments(a, b, out, precision))
        else:
            _by_cupy(device.xp, a, b, out, precision)


def _by_cupy(cupy: Any, a: Any, b: Any, out: Any, precision: str) -> None:
    if precision == "fp32":
        cupy.matmul(a, b, out=out)
        return
    cublas, tf32 = cupy.cuda.cublas, precision == "tf32"
    sums = cublas.CUBLAS_COMPUTE_32F_FAST_TF32 if tf32 else cublas.CUBLAS_COMPUTE_32F
    *arguments, _, algorithm = _arguments(a, b, out, precision)
    cublas.gemmEx(cupy.cuda.device.get_cublas_handle(), *arguments, sums, algorithm)


def _simulated(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    def operand(array: np.ndarray) -> np.ndarray:
        if array.dtype == BITS:
            return from_bits(array)
        return round_tf32(array, np.empty(array.shape, np.float32))

    values = np.matmul(operand(a), operand(b))
    out[...] = to_bits(values) if out.dtype == BITS else values


def _arguments(a: Any, b: Any, out: Any, precision: str) -> tuple[int, ...]:
    """What cublasGemmEx takes after its handle."""

    def layout(array: Any) -> tuple[int, int]:
        # cuBLAS is column-major: it reads the transpose of a C-contiguous array.
        if array.flags.c_contiguous:
            return NORMAL, array.shape[1]
        if array.T.flags.c_contiguous:
            return TRANSPOSED, array.shape[0]
        raise ValueError(f"product: an operand of {array.shape} is not contiguous; copy it first")

    # outᵀ = bᵀ · aᵀ: column-major that is out, row-major.
    (rows, depth), columns = a.shape, b.shape[1]
    (of_a, stride_a), (of_b, stride_b) = layout(a), layout(b)
    sums = SUMS_32_OF_TF32 if precision == "tf32" else SUMS_32
    number = np.dtype(np.float32)
    if a.dtype == np.float64:
        sums, number = SUMS_64, a.dtype
    return (
        *(of_b, of_a, columns, rows, depth),
        *(ONES[number].ctypes.data, b.data.ptr, KINDS[b.dtype], stride_b),
        *(a.data.ptr, KINDS[a.dtype], stride_a),
        *(ZEROS[number].ctypes.data, out.data.ptr, KINDS[out.dtype], columns),
        *(sums, ANY_ALGORITHM),
    )
