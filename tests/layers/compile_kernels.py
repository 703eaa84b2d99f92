"""Compile every kernel of the project without a GPU, and write down what came out.

    python tests/layers/compile_kernels.py FOLDER

with the simulator off, which has no compiler. Into FOLDER go the PTX of each kernel and rows.json,
what `ptxas` says of it. `tests/helpers/compiled.py` does this once for all tests that want it.
"""

import importlib
import json
import pkgutil
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from numba import float32, types

from layers.device import cuda

ARCHITECTURES = ((7, 5), (8, 0), (9, 0))
NUMBERS = {"float32": types.float32, "float64": types.float64, "bfloat16": types.uint16}
"""What activations are stored as."""

TENSOR_KERNELS = {
    kind: [
        f"layers.conv.{module}_{tile}_{kind}_kernel"
        for module in ("tensor_core.tensor_forward", "tensor_gradients.tensor_filter")
        for tile in ("large", "small")
    ]
    for kind in ("tf32", "bf16")
}
"""The kernels that multiply on tensor cores."""

OLDEST: dict[str, tuple[int, int]] = dict.fromkeys(
    [
        *(name for names in TENSOR_KERNELS.values() for name in names),
        "layers.conv.blocks.filter_blocks_kernel",
        "layers.conv.blocks.turned_blocks_kernel",
    ],
    (8, 0),
)
"""Kernels that need a newer architecture than the oldest one, and which."""

ASKS_FOR_ITS_ARCHITECTURE = "layers.activation.tanh_forward_kernel"
"""Numba looks at the architecture before it decides how to compute tanh."""


def architectures_of(name, dtype):
    """Those of ARCHITECTURES on which this kernel is launched with activations of `dtype`."""
    oldest = OLDEST.get(name, (8, 0) if dtype == "bfloat16" else ARCHITECTURES[0])
    return [architecture for architecture in ARCHITECTURES if architecture >= oldest]


def tensor_signatures(stored):
    """The argument types of the kernels of rung 3, for float32 or bfloat16 (uint16)."""
    integer, number = types.int64, types.float32
    values, numbers, flat, flat_numbers = (
        types.Array(*array, "C") for array in ((stored, 4), (number, 4), (stored, 1), (number, 1))
    )
    bf16 = stored == types.uint16
    forward = (flat, flat, flat_numbers, flat, flat, *(integer,) * 11)
    filter_gradient = (flat, flat, flat_numbers, *(integer,) * 15)
    only_float32 = {
        "layers.conv.blocks.filter_from_blocks_kernel": (numbers, numbers, integer),
    }
    return {
        **{
            name: forward if ".tensor_core." in name else filter_gradient
            for name in TENSOR_KERNELS["bf16" if bf16 else "tf32"]
        },
        "layers.conv.blocks.image_blocks_kernel": (values, values, *(integer,) * 3),
        "layers.conv.blocks.filter_blocks_kernel": (numbers, values, integer),
        "layers.conv.blocks.turned_blocks_kernel": (numbers, values, integer, integer),
        "layers.conv.blocks.image_from_blocks_kernel": (
            *(values,) * 3, *(integer,) * 3, types.boolean,
        ),
        **({} if bf16 else only_float32),
    }  # fmt: skip


def signatures(stored):
    """The argument types of each kernel as the layers launch it, with activations of `stored`.

    A kernel that does not know `stored` is left out, and one that no activations go through is not
    given twice: float32 has it already.
    """
    integer, key = types.int64, types.uint64
    bf16 = stored == types.uint16
    number = types.float32 if bf16 else stored

    def array(ndim, dtype=number):
        return types.Array(dtype, ndim, "C")

    def values(ndim):
        return array(ndim, stored)

    keys, place = array(1, key), array(4, types.uint8)
    winner, labels, draw = array(4, types.int32), array(1, types.int64), array(1, types.int32)
    geometry = (integer,) * 3
    only_float32 = {}
    if stored == types.float32:
        forward = (array(1),) * 4 + (integer,) * 11
        filter_gradient = (array(1),) * 3 + (integer,) * 11
        only_float32 = {
            **tensor_signatures(stored),
            "layers.conv.tiled.tiled_forward_wide_kernel": forward,
            "layers.conv.tiled.tiled_forward_narrow_kernel": forward,
            "layers.conv.tiled_gradients.turn_filters_kernel": (array(4), array(4), integer),
            "layers.conv.tiled_gradients.tiled_filter_wide_kernel": filter_gradient,
            "layers.conv.tiled_gradients.tiled_filter_narrow_kernel": filter_gradient,
        }
    for_activations = {
        "layers.activation.relu_forward_kernel": (values(1),) * 2,
        "layers.activation.relu_backward_kernel": (values(1),) * 3,
        "layers.activation.tanh_forward_kernel": (values(1),) * 2,
        "layers.activation.tanh_backward_kernel": (values(1),) * 3,
        "layers.conv.direct.conv_bias_gradient_kernel": (values(2), array(1)),
        "layers.dropout.dropout_kernel": (values(1), values(1), number, key, keys),
        "layers.fused.epilogue.bias_kernel": (array(1), array(1), values(1)),
        "layers.fused.epilogue.bias_relu_kernel": (array(1), array(1), values(1)),
        "layers.fused.epilogue.bias_relu_dropout_kernel": (
            *(array(1), array(1), values(1)),
            *(number, key, keys),
        ),
        "layers.fused.epilogue.masked_gradient_kernel": (
            *(*(values(2),) * 3, array(2)),
            *(integer, number),
        ),
        "layers.lrn.lrn_forward_kernel": (
            *(values(2), values(2), array(2)),
            *(integer, integer, *(number,) * 3),
        ),
        "layers.lrn.lrn_backward_kernel": (
            *(values(2), values(2), array(2), values(2), values(2)),
            *(integer, integer, number, number),
        ),
        "layers.lrn_rows.lrn_rows_forward_kernel": (
            *(values(1), values(1), integer, integer),
            *(*(number,) * 3, integer),
        ),
        "layers.lrn_rows.lrn_rows_backward_kernel": (
            *(*(values(1),) * 3, integer, integer),
            *(*(number,) * 4, integer),
        ),
        "layers.max_pool.max_pool_forward_kernel": (values(4), values(4), winner, *(integer,) * 2),
        "layers.max_pool.max_pool_backward_kernel": (values(4), winner, values(4), *(integer,) * 2),
        "layers.max_pool_rows.max_pool_rows_forward_kernel": (values(4), values(4), place),
        "layers.max_pool_rows.max_pool_rows_backward_kernel": (values(4), place, values(4)),
        "layers.precision.scale_kernel": (values(1), number),
        "layers.reductions.sum_rows_kernel": (values(2), array(2), integer),
        "layers.softmax_cross_entropy.softmax_forward_kernel": (
            *(values(2), labels, array(2), array(1)),
        ),
        "layers.softmax_cross_entropy.softmax_backward_kernel": (array(2), labels, values(2)),
        "layers.softmax_rows.softmax_rows_kernel": (
            *(values(2), labels, array(2), array(1), values(2)),
        ),
    }
    if bf16:
        return {
            **for_activations,
            **tensor_signatures(stored),
            "layers.precision.bits_kernel": (array(1), values(1)),
        }
    return {
        **only_float32,
        **for_activations,
        "layers.conv.direct.conv_forward_kernel": (
            *(array(4), array(4), array(1), array(4)),
            *geometry,
        ),
        "layers.conv.direct.conv_input_gradient_kernel": (*(array(4),) * 3, *geometry),
        "layers.conv.direct.conv_filter_gradient_kernel": (*(array(4),) * 3, *geometry),
        "layers.reductions.sum_parts_kernel": (array(2), array(1)),
        "layers.reductions.mean_kernel": (array(1), array(1)),
        "tinyconv.data.augment.crop_kernel": (
            *(array(4, types.uint8), array(3), draw, draw, draw, array(2)),
            *(integer, number, array(4)),
        ),
        "tinyconv.sgd.sgd_kernel": (array(1),) * 6,
    }


def planted_signatures(number):
    """The kernels below that must be caught."""
    array = types.Array(number, 1, "C")
    return {"planted_double": (array,), "planted_local": (array, types.int64)}


def planted_kernels():
    """A kernel with a float64 constant, and one with an array that does not fit registers."""

    @cuda.jit
    def planted_double(x):
        i = cuda.grid(1)
        if i < x.size:
            x[i] *= 0.1

    @cuda.jit
    def planted_local(x, turns):
        i = cuda.grid(1)
        seen = cuda.local.array(100, float32)
        for turn in range(turns):
            seen[turn % 100] = x[turn]
        x[i] = seen[i % 100]

    return {"planted_double": planted_double, "planted_local": planted_local}


def kernels():
    """Every kernel that a module of `layers` or `tinyconv` defines, by its full name."""
    dispatcher = type(cuda.jit(lambda: None))
    found = {}
    for package in ("layers", "tinyconv"):
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            if module.name.endswith(".__main__"):
                continue
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, dispatcher) and not value.targetoptions.get("device"):
                    found[f"{value.py_func.__module__}.{value.py_func.__name__}"] = value
    return found


_library: dict = {}  # of the last kernel


def ptx_of(kernel, arguments, architecture):
    """The kernel's PTX, as of `cuda.compile`.

    That would run Numba's front end for each architecture. It takes most of the time, and its
    result is the same for all: only what NVVM makes of it differs.
    """
    key = kernel.py_func, arguments
    if key not in _library:
        _library.clear()
        _library[key], _ = cuda.compiler._compile_pyfunc_with_fixup(
            *key, device=False, abi="numba", cc=architecture
        )
    return _library[key].get_asm_str(cc=architecture)


def same_as_alone(kernel, arguments, architecture, ptx):
    """Whether `ptx` is what `cuda.compile` gives for this architecture alone."""
    alone, _ = cuda.compile(
        *(kernel.py_func, arguments),
        **{"cc": architecture, "device": False, "abi": "numba", "output": "ptx"},
    )

    def renamed(ptx):
        # Numba's names hold the options of a compilation, and a running number.
        names = dict.fromkeys(re.findall(r"_Z\w+", ptx))
        numbers = {name: f"name{number}" for number, name in enumerate(names)}
        return re.sub(r"_Z\w+", lambda found: numbers[found[0]], ptx)

    return renamed(ptx) == renamed(alone)


def find_ptxas():
    """NVIDIA's assembler, out of the CUDA 13 or 12 wheels, or on PATH; None if it is missing."""
    for folder in sys.path:
        for wheel in ("cu13/bin", "cuda_nvcc/bin"):
            path = Path(folder, "nvidia", wheel, "ptxas")
            if path.is_file():
                return str(path)
    return shutil.which("ptxas")


def assemble(ptxas, ptx, architecture):
    """What `ptxas -v` says of the kernel: registers, stack and spills; or its error."""
    major, minor = architecture
    command = [ptxas, "-v", f"-arch=sm_{major}{minor}", "-o", "/dev/null", "-"]
    done = subprocess.run(command, input=ptx, capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stdout + done.stderr}
    said = done.stderr

    def largest(pattern):
        # A kernel can have functions of its own (pow in float64): the worst of them counts.
        return max((int(number) for number in re.findall(pattern, said)), default=0)

    return {
        "registers": largest(r"Used (\d+) registers"),
        "shared": largest(r"(\d+) bytes smem"),
        "stack": largest(r"(\d+) bytes stack frame"),
        "spill stores": largest(r"(\d+) bytes spill stores"),
        "spill loads": largest(r"(\d+) bytes spill loads"),
    }


def lines_with(text, ptx):
    """The first few lines of PTX that hold `text`."""
    return [line.strip() for line in ptx.splitlines() if text in line][:3]


def main():
    """Compile, assemble, write."""
    folder = Path(sys.argv[1])
    ptxas = find_ptxas()
    real = kernels()
    planted = planted_kernels()
    rows = []
    with ThreadPoolExecutor(1) as assembler:
        for dtype, number in NUMBERS.items():
            for name, arguments in {**signatures(number), **planted_signatures(number)}.items():
                kernel = real.get(name) or planted.get(name)
                for architecture in architectures_of(name, dtype) if kernel else ():
                    row = {"kernel": name, "dtype": dtype, "architecture": architecture}
                    rows.append(row)
                    try:
                        ptx = ptx_of(kernel, arguments, architecture)
                    except Exception as error:  # any failure to compile is a finding
                        row["error"] = f"{type(error).__name__}: {error}"
                        continue
                    row["ptx"] = f"{name}-{dtype}-sm_{architecture[0]}{architecture[1]}.ptx"
                    (folder / row["ptx"]).write_text(ptx)
                    row["doubles"] = lines_with(".f64", ptx)
                    row["locals"] = lines_with(".local", ptx)
                    if name == ASKS_FOR_ITS_ARCHITECTURE:
                        row["same as alone"] = same_as_alone(kernel, arguments, architecture, ptx)
                    row["products"] = lines_with("mma.sync", ptx)
                    if ptxas:
                        # ptxas is a process of its own: it assembles while the next one compiles.
                        job = assembler.submit(assemble, ptxas, ptx, architecture)
                        job.add_done_callback(lambda job, row=row: row.update(job.result()))
    result = {"ptxas": ptxas, "kernels": sorted(real), "rows": rows}
    (folder / "rows.part").write_text(json.dumps(result, indent=1))
    (folder / "rows.part").replace(folder / "rows.json")


if __name__ == "__main__":
    main()
