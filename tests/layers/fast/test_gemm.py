"""Products of matrices in each precision: on the host, simulated, and what cuBLAS would be told."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

from layers import Device
from layers.fast.bfloat16 import from_bits, round_bf16, round_tf32, to_bits
from layers.fast.gemm import multiply
from layers.fast.precision import BITS

SHAPES = {
    "all sides differ": (3, 5, 7),
    "a row": (1, 6, 4),
    "a column": (5, 3, 1),
    "one": (1, 1, 1),
}


def operands(shape, transposed, dtype=np.float32):
    """a and b, as they lie in memory or transposed."""
    rows, depth, columns = shape
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((rows, depth)), rng.standard_normal((depth, columns))
    return [
        np.ascontiguousarray(each.T, dtype).T if turned else each.astype(dtype)
        for each, turned in zip((a, b), transposed, strict=True)
    ]


def rounded(array, function):
    """A copy, with the same memory layout."""
    turned = not array.flags.c_contiguous
    array = np.ascontiguousarray(array.T if turned else array)
    out = function(array, np.empty_like(array))
    return out.T if turned else out


def bits(array):
    """The same as bfloat16."""
    return to_bits(array) if array.flags.c_contiguous else to_bits(array.T).T


def assert_product(out, a, b):
    """`out` is a · b but for float32 roundings of the sums, or one to bfloat16."""
    right = a.astype(np.float64) @ b.astype(np.float64)
    size = np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64))
    if out.dtype == BITS:
        np.testing.assert_allclose(from_bits(out), right, rtol=2**-8, atol=1e-6)
    else:
        assert (np.abs(out - right) <= 1e-6 * size).all()


every_layout = pytest.mark.parametrize(
    "transposed", [(False, False), (True, False), (False, True)], ids=["a b", "aᵀ b", "a bᵀ"]
)
every_shape = pytest.mark.parametrize("title", SHAPES)


@every_layout
@every_shape
def test_fp32_is_the_product(title, transposed, device):
    for dtype in (np.float32, np.float64):
        a, b = operands(SHAPES[title], transposed, dtype)
        on_device = [device.array(each.T).T if turned else device.array(each)
                     for each, turned in zip((a, b), transposed, strict=True)]  # fmt: skip
        out = device.empty((a.shape[0], b.shape[1]), dtype)
        multiply(device, (*on_device, out))
        assert_product(device.to_host(out), a, b)


@every_layout
@every_shape
def test_a_simulated_product_rounds_like_tensor_cores(title, transposed, cuda_device):
    if not cuda_device.is_simulated:
        pytest.skip("what cuBLAS does with float32 is its own")
    a, b = operands(SHAPES[title], transposed)
    out = np.empty((a.shape[0], b.shape[1]), np.float32)
    multiply(cuda_device, (a, b, out), precision="tf32")
    assert_product(out, rounded(a, round_tf32), rounded(b, round_tf32))
    a, b = rounded(a, round_bf16), rounded(b, round_bf16)
    multiply(cuda_device, (bits(a), bits(b), out), precision="bf16")
    assert_product(out, a, b)
    narrow = np.empty(out.shape, BITS)
    multiply(cuda_device, (bits(a), bits(b), narrow), precision="bf16")
    np.testing.assert_array_equal(narrow, to_bits(out))


# --- a stand-in for CuPy: memory is the host's, and gemmEx goes through it by pointers alone


class FakeArray(np.ndarray):
    """A NumPy array with CuPy's pointer."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.__array_interface__["data"][0])


class FakeCupy:
    """As much of CuPy as `products.py` uses; `calls` lists how gemmEx was to compute."""

    CUDA_R_32F, CUDA_R_16BF, OP_N, OP_T = 0, 14, 0, 1

    def __init__(self):
        self.calls = []
        cublas = SimpleNamespace(
            gemmEx=self._gemm, CUBLAS_OP_N=0, CUBLAS_OP_T=1, CUBLAS_COMPUTE_32F=68,
            CUBLAS_COMPUTE_32F_FAST_TF32=77, CUBLAS_GEMM_DEFAULT=-1,
        )  # fmt: skip
        self.cuda = SimpleNamespace(
            cublas=cublas,
            runtime=SimpleNamespace(CUDA_R_32F=self.CUDA_R_32F, CUDA_R_16BF=self.CUDA_R_16BF),
            device=SimpleNamespace(get_cublas_handle=lambda: 4711),
        )

    def device(self):
        """A `Device` whose CuPy this is."""
        device = Device("cpu")
        device.name, device.is_cuda, device.is_simulated, device.xp = "cuda:0", True, False, self
        return device

    def _matrix(self, pointer, kind, rows, columns, stride):
        """(rows, columns) column by column, `stride` elements from one column to the next."""
        assert stride >= rows
        number = ctypes.c_uint16 if kind == self.CUDA_R_16BF else ctypes.c_float
        flat = np.ctypeslib.as_array(
            (number * (stride * (columns - 1) + rows)).from_address(pointer)
        )
        return np.lib.stride_tricks.as_strided(
            flat, (rows, columns), (flat.itemsize, flat.itemsize * stride)
        )

    def _gemm(
        self, handle, op_a, op_b, m, n, k, alpha, a, kind_a, stride_a, b, kind_b, stride_b, beta, c,
        kind_c, stride_c, compute, algorithm,
    ):  # fmt: skip
        assert handle == 4711 and algorithm == -1
        assert kind_a == kind_b, "cuBLAS takes operands of one kind"
        one, zero = (ctypes.c_float.from_address(each).value for each in (alpha, beta))
        assert (one, zero) == (1, 0)
        self.calls.append((compute, kind_a, kind_c))

        def operand(pointer, kind, operation, rows, columns, stride):
            shape = (columns, rows) if operation == self.OP_T else (rows, columns)
            array = self._matrix(pointer, kind, *shape, stride)
            array = array.T if operation == self.OP_T else array
            return from_bits(array) if array.dtype == BITS else array

        values = operand(a, kind_a, op_a, m, k, stride_a) @ operand(b, kind_b, op_b, k, n, stride_b)
        out = self._matrix(c, kind_c, m, n, stride_c)
        out[...] = to_bits(np.ascontiguousarray(values)) if out.dtype == BITS else values


@every_layout
@every_shape
def test_cublas_is_told_where_the_matrices_lie_and_what_they_are(title, transposed):
    cupy = FakeCupy()
    a, b = operands(SHAPES[title], transposed)
    out = np.empty((a.shape[0], b.shape[1]), np.float32).view(FakeArray)
    multiply(cupy.device(), (a.view(FakeArray), b.view(FakeArray), out), precision="tf32")
    assert_product(np.asarray(out), a, b)
    assert cupy.calls == [(77, 0, 0)]
    a, b = rounded(a, round_bf16), rounded(b, round_bf16)
    multiply(
        cupy.device(), (bits(a).view(FakeArray), bits(b).view(FakeArray), out), precision="bf16"
    )
    assert_product(np.asarray(out), a, b)
    narrow = np.empty(out.shape, BITS).view(FakeArray)
    multiply(
        cupy.device(), (bits(a).view(FakeArray), bits(b).view(FakeArray), narrow), precision="bf16"
    )
    assert_product(np.asarray(narrow), a, b)
    assert cupy.calls[1:] == [(68, 14, 0), (68, 14, 14)]


def test_an_operand_that_is_not_contiguous_is_refused():
    cupy = FakeCupy()
    a = np.zeros((4, 6), np.float32).view(FakeArray)[::2, ::2]
    out = np.zeros((2, 2), np.float32).view(FakeArray)
    with pytest.raises(
        ValueError, match=r"an operand of \(2, 3\) is not contiguous; copy it first"
    ):
        multiply(
            cupy.device(), (a, np.zeros((3, 2), np.float32).view(FakeArray), out), precision="tf32"
        )
    assert not cupy.calls
