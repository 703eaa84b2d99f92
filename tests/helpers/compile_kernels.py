"""Compile every kernel of the project without a GPU, and write down what came out.

    python tests/helpers/compile_kernels.py FOLDER [book]

for all its architectures, or those of the book for compute capability 9.0; with the simulator off,
which has no compiler. Into
FOLDER go the PTX of each kernel and rows.json, what `ptxas` says of it. `compiled.py` does this
once for all tests that need it.
"""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from numba import float32, types
from numba.cuda import compiler
from numba.cuda.cudadrv import driver

from layers.device import cuda
from tinyconv.lab.cases import CASES
from tinyconv.lab.cases.book import GROUPS as BOOK
from tinyconv.lab.cases.case import KernelCase

ASKS_FOR_ITS_ARCHITECTURE = "tanh_forward_kernel"
"""Numba looks at the architecture before it decides how to compute tanh."""


def planted():
    """Cases that must be caught: a float64 constant, and an array that does not fit registers."""

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

    yield KernelCase(planted_double, "number[1]")
    yield KernelCase(planted_local, "number[1] int64")


def with_suffix(architecture):
    """(9, 0, "a") for (9, 0): from Hopper on a launch compiles for what only that one has."""
    return *architecture, "a" if architecture >= (9, 0) else ""


def arch_option(architecture):
    """sm_90a for (9, 0)."""
    return "sm_{}{}{}".format(*with_suffix(architecture))


def library_of(kernel, arguments, architecture):
    """Numba's compiled library, made as a launch makes it (`numba.cuda.dispatcher._Kernel`)."""
    lto = driver._have_nvjitlink()
    result = compiler.compile_cuda(
        *(kernel.py_func, types.void, arguments),
        **{"debug": False, "lineinfo": False, "forceinline": False, "fastmath": False},
        **{"nvvm_options": {"fastmath": False, "opt": 3}, "max_registers": None},
        cc=with_suffix(architecture),
        lto=lto,
    )
    library = result.library
    function = library.get_function(result.fndesc.llvm_func_name)
    library._entry_name = result.fndesc.llvm_func_name
    compiler.kernel_fixup(function, False)
    return library


def text_of(library, architecture):
    """Its PTX: after link-time optimization where nvJitLink is installed, else as it is written."""
    ptx = library.get_lto_ptx if library._lto else library.get_asm_str
    return ptx(cc=with_suffix(architecture)).strip().strip("\0")


KEPT = 64
_libraries: dict = {}  # of the last kernels


def ptx_of(kernel, arguments, architecture):
    """The PTX that a launch of the kernel assembles on this architecture.

    Numba's front end runs once for all architectures. It takes most of the time, and its result is
    the same for all: only what NVVM makes of it differs.
    """
    key = kernel.py_func, arguments
    if key not in _libraries:
        if len(_libraries) == KEPT:
            _libraries.clear()
        _libraries[key] = library_of(kernel, arguments, architecture)
    return text_of(_libraries[key], architecture)


def same_as_alone(kernel, arguments, architecture, ptx):
    """Whether `ptx` is what the front end gives for this architecture alone."""
    alone = text_of(library_of(kernel, arguments, architecture), architecture)

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
    command = [ptxas, "-v", f"-arch={arch_option(architecture)}", "-o", "/dev/null", "-"]
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
    folder, all_of_them = Path(sys.argv[1]), not sys.argv[2:]
    ptxas = find_ptxas()
    book = [case for group in BOOK.values() for case in group.cases]
    cases = *(CASES.values() if all_of_them else book), *planted()
    jobs = [(case, dtype) for case in cases for dtype in case.dtypes]
    rows = []
    with ThreadPoolExecutor(1) as assembler:
        for case, dtype in jobs:
            name, arguments = case.name, case.argument_types(dtype)
            for architecture in case.architectures_of(dtype):
                if not all_of_them and architecture != (9, 0):
                    continue
                row = {"kernel": name, "dtype": dtype, "architecture": architecture}
                rows.append(row)
                try:
                    ptx = ptx_of(case.kernel, arguments, architecture)
                except Exception as error:  # any failure to compile is an issue
                    row["error"] = f"{type(error).__name__}: {error}"
                    continue
                row["ptx"] = f"{name}-{dtype}-sm_{architecture[0]}{architecture[1]}.ptx"
                (folder / row["ptx"]).write_text(ptx)
                row["doubles"] = lines_with(".f64", ptx)
                row["locals"] = lines_with(".local", ptx)
                if name == ASKS_FOR_ITS_ARCHITECTURE:
                    row["same as alone"] = same_as_alone(case.kernel, arguments, architecture, ptx)
                row["products"] = lines_with("mma.sync", ptx)
                if ptxas:
                    # ptxas is a process of its own: it assembles while the next one compiles.
                    job = assembler.submit(assemble, ptxas, ptx, architecture)
                    job.add_done_callback(lambda job, row=row: row.update(job.result()))
    (folder / "rows.part").write_text(json.dumps({"ptxas": ptxas, "rows": rows}, indent=1))
    (folder / "rows.part").replace(folder / "rows.json")


if __name__ == "__main__":
    main()
