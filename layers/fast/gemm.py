"""Matrix products by the vendor's library, in a step's precision (`precision.py`).

    out = a · b          a (M, K), b (K, N), out (M, N)

              the host                        a GPU
    fp32      NumPy's BLAS (`threads.py`)     CuPy's matmul
    tf32      the same: the caller has        cuBLAS, float32 operands, rounded by tensor cores
    bf16      rounded a and b                 cuBLAS, a and b bfloat16, out float32 or bfloat16

Sums are float32 (in fp32: of the arrays' dtype). How cuBLAS converts float32 to TF32 is not
documented. bfloat16 is passed as uint16 to cuBLAS's gemmEx, which takes the types of its matrices
as arguments. The simulator uses NumPy. Not yet run on a GPU.
"""

from typing import Any

import numpy as np

from layers.device import Device
from layers.fast.bfloat16 import from_bits, round_tf32, to_bits
from layers.fast.host import threads
from layers.fast.precision import BITS

ONE, ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)


def multiply(device: Device, *triples: tuple[Any, Any, Any], precision: str = "fp32") -> None:
    """out (M, N) = a (M, K) · b (K, N) for each (a, b, out), arrays of `device`.

    out is C-contiguous, a and b are, or their transposes. No product may need another's result.
    """
    if precision == "fp32" or not device.is_cuda:
        threads.multiply(device, *triples)
        return
    for a, b, out in triples:
        if device.is_simulated:
            _simulated(a, b, out)
        else:
            _tensor_cores(device.xp, a, b, out)


def _simulated(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    def operand(array: np.ndarray) -> np.ndarray:
        if array.dtype == BITS:
            return from_bits(array)
        return round_tf32(array, np.empty(array.shape, np.float32))

    values = np.matmul(operand(a), operand(b))
    out[...] = to_bits(values) if out.dtype == BITS else values


def _tensor_cores(cupy: Any, a: Any, b: Any, out: Any) -> None:
    cublas, runtime = cupy.cuda.cublas, cupy.cuda.runtime

    def kind(array: Any) -> Any:
        return runtime.CUDA_R_16BF if array.dtype == BITS else runtime.CUDA_R_32F

    def layout(array: Any) -> tuple[int, int]:
        # cuBLAS is column-major: it reads the transpose of a C-contiguous array.
        if array.flags.c_contiguous:
            return cublas.CUBLAS_OP_N, array.shape[1]
        if array.T.flags.c_contiguous:
            return cublas.CUBLAS_OP_T, array.shape[0]
        raise ValueError(f"product: an operand of {array.shape} is not contiguous; copy it first")

    # outᵀ = bᵀ · aᵀ: column-major that is out, row-major.
    (rows, depth), columns = a.shape, b.shape[1]
    (of_a, stride_a), (of_b, stride_b) = layout(a), layout(b)
    only_bits = a.dtype == BITS
    compute = cublas.CUBLAS_COMPUTE_32F if only_bits else cublas.CUBLAS_COMPUTE_32F_FAST_TF32
    cublas.gemmEx(
        *(cupy.cuda.device.get_cublas_handle(), of_b, of_a, columns, rows, depth),
        *(ONE.ctypes.data, b.data.ptr, kind(b), stride_b, a.data.ptr, kind(a), stride_a),
        *(ZERO.ctypes.data, out.data.ptr, kind(out), columns),
        *(compute, cublas.CUBLAS_GEMM_DEFAULT),
    )
