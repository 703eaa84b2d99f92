"""Products of matrices in each precision: on the host, simulated, and what cuBLAS would be told."""

import ctypes
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from layers import Device
from layers.fast import cublas, gemm
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


# --- a fake cuBLAS: memory is the host's, and gemmEx goes through it by pointers alone


class FakeArray(np.ndarray):
    """A NumPy array with CuPy's pointer."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.__array_interface__["data"][0])


FLOAT, DOUBLE, BFLOAT16 = 0, 1, 14
NUMBERS = {FLOAT: ctypes.c_float, DOUBLE: ctypes.c_double, BFLOAT16: ctypes.c_uint16}


class FakeCupy:
    """As much of CuPy as `gemm.py` and `cublas.py` use; `calls` lists how gemmEx was to compute."""

    def __init__(self):
        self.calls, self.stream = [], 256
        self.cuda = SimpleNamespace(
            Device=lambda index: nullcontext(),
            cublas=SimpleNamespace(
                gemmEx=self.gemm, CUBLAS_COMPUTE_32F=68, CUBLAS_COMPUTE_32F_FAST_TF32=77
            ),
            device=SimpleNamespace(get_cublas_handle=lambda: 4711),
            get_current_stream=lambda: SimpleNamespace(ptr=self.stream),
        )

    def empty(self, shape, dtype):
        return np.empty(shape, dtype).view(FakeArray)

    def matmul(self, a, b, out):
        kind = FLOAT if a.dtype == np.float32 else DOUBLE
        self.calls.append((68 if kind == FLOAT else 70, kind, kind))
        np.matmul(np.asarray(a), np.asarray(b), out=np.asarray(out))

    def device(self):
        """A `Device` whose CuPy this is."""
        device = Device("cpu")
        device.name, device.is_cuda, device.is_simulated, device.xp = "cuda:0", True, False, self
        return device

    def _matrix(self, pointer, kind, rows, columns, stride):
        """(rows, columns) column by column, `stride` elements from one column to the next."""
        assert stride >= rows
        flat = np.ctypeslib.as_array(
            (NUMBERS[kind] * (stride * (columns - 1) + rows)).from_address(pointer)
        )
        return np.lib.stride_tricks.as_strided(
            flat, (rows, columns), (flat.itemsize, flat.itemsize * stride)
        )

    def gemm(
        self, handle, op_a, op_b, m, n, k, alpha, a, kind_a, stride_a, b, kind_b, stride_b, beta, c,
        kind_c, stride_c, compute, algorithm,
    ):  # fmt: skip
        assert handle == 4711 and algorithm == -1
        assert kind_a == kind_b, "cuBLAS takes operands of one kind"
        scale = ctypes.c_double if compute == 70 else ctypes.c_float
        one, zero = (scale.from_address(each).value for each in (alpha, beta))
        assert (one, zero) == (1, 0)
        self.calls.append((compute, kind_a, kind_c))

        def operand(pointer, kind, operation, rows, columns, stride):
            shape = (columns, rows) if operation == 1 else (rows, columns)
            array = self._matrix(pointer, kind, *shape, stride)
            array = array.T if operation == 1 else array
            return from_bits(array) if array.dtype == BITS else array

        values = operand(a, kind_a, op_a, m, k, stride_a) @ operand(b, kind_b, op_b, k, n, stride_b)
        out = self._matrix(c, kind_c, m, n, stride_c)
        out[...] = to_bits(np.ascontiguousarray(values)) if out.dtype == BITS else values


class FakeLibrary:
    """libcublas: takes ctypes' objects, returns a status, and has one stream and workspace."""

    def __init__(self, cupy, fail=None):
        self.cupy, self.fail, self.said = cupy, fail, []

    def cublasCreate_v2(self, handle):
        handle._obj.value = 4711
        return 3 if self.fail == "create" else 0

    def cublasSetStream_v2(self, handle, stream):
        self.said += [("stream", stream.value)]
        return 0

    def cublasSetWorkspace_v2(self, handle, pointer, size):
        assert pointer.value and size.value == cublas.WORKSPACE
        self.said += ["workspace"]
        return 0

    def cublasGemmEx(self, *arguments):
        assert len(arguments) == 19
        assert [type(each) is ctypes.c_void_p for each in arguments] == [
            place in (0, 6, 7, 10, 13, 14) for place in range(19)
        ]
        self.said += ["product"]
        self.cupy.gemm(*(each.value for each in arguments))
        return 13 if self.fail == "product" else 0


@pytest.fixture(params=["cublas.py", "CuPy"])
def fake(request, monkeypatch):
    """A FakeCupy, reached by either way."""
    cupy = FakeCupy()
    monkeypatch.setattr(cublas, "_libraries", {})

    def load():
        if request.param == "CuPy":
            raise RuntimeError("no libcublas")
        return FakeLibrary(cupy)

    monkeypatch.setattr(cublas, "_load", load)
    return cupy


@every_layout
@every_shape
def test_cublas_is_told_where_the_matrices_lie_and_what_they_are(title, transposed, fake):
    device = fake.device()
    for dtype, precision, call in (
        (np.float32, "fp32", (68, FLOAT, FLOAT)),
        (np.float64, "fp32", (70, DOUBLE, DOUBLE)),
        (np.float32, "tf32", (77, FLOAT, FLOAT)),
    ):
        a, b = operands(SHAPES[title], transposed, dtype)
        out = np.empty((a.shape[0], b.shape[1]), dtype).view(FakeArray)
        multiply(device, (a.view(FakeArray), b.view(FakeArray), out), precision=precision)
        assert_product(np.asarray(out), a, b)
        assert fake.calls.pop() == call
    a, b = (rounded(each.astype(np.float32), round_bf16) for each in (a, b))
    for dtype, kind in ((np.float32, FLOAT), (BITS, BFLOAT16)):
        out = np.empty((a.shape[0], b.shape[1]), dtype).view(FakeArray)
        multiply(device, (bits(a).view(FakeArray), bits(b).view(FakeArray), out), precision="bf16")
        assert_product(np.asarray(out), a, b)
        assert fake.calls.pop() == (68, BFLOAT16, kind)


def test_an_operand_that_is_not_contiguous_is_refused(fake):
    a = np.zeros((4, 6), np.float32).view(FakeArray)[::2, ::2]  # CuPy's matmul would take it
    out = np.zeros((2, 2), np.float32).view(FakeArray)
    with pytest.raises(
        ValueError, match=r"an operand of \(2, 3\) is not contiguous; copy it first"
    ):
        multiply(
            fake.device(), (a, np.zeros((3, 2), np.float32).view(FakeArray), out), precision="tf32"
        )
    assert not fake.calls


def test_a_new_stream_gets_the_workspace_again():
    cupy = FakeCupy()
    library = FakeLibrary(cupy)
    handle = cublas.Cublas(library, cupy.device())
    a = np.eye(2, dtype=np.float32).view(FakeArray)
    for stream in (256, 256, 512):
        cupy.stream = stream
        handle.gemm_ex(*gemm._arguments(a, a, np.empty_like(a), "fp32"))
    first, second = ([("stream", number), "workspace", "product"] for number in (256, 512))
    assert library.said == [*first, "product", *second]


@pytest.mark.parametrize("fail", ["create", "product"])
def test_a_call_of_cublas_that_fails(fail, monkeypatch):
    cupy = FakeCupy()
    library = FakeLibrary(cupy, fail)
    monkeypatch.setattr(cublas, "_libraries", {})
    monkeypatch.setattr(cublas, "_load", lambda: library)
    a = np.eye(2, dtype=np.float32).view(FakeArray)
    if fail == "create":  # CuPy may still be able to
        multiply(cupy.device(), (a, a, np.empty_like(a)))
        assert cupy.calls and not library.said
    else:
        with pytest.raises(RuntimeError, match="cublasGemmEx failed with status 13"):
            multiply(cupy.device(), (a, a, np.empty_like(a)))
