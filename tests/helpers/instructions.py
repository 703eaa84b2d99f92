"""Kernels around single instructions of `ptx.py` and `mma.py`, and their machine code.

The tests launch them. Run as a script, with the simulator off, this compiles each for the
architectures that have the instructions and prints as JSON what came out.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from numba import float32, int32, types, uint32

from layers.device import cuda
from layers.fast.bfloat16 import narrow, widen
from layers.fast.conv.mma import (
    cvt_rna_tf32,
    ldmatrix_x4,
    ldmatrix_x4_trans,
    mma_bf16,
    mma_tf32,
)
from layers.fast.conv.ptx import (
    copy_scalar,
    copy_vec4,
    cp_async,
    cp_async_commit_group,
    cp_async_wait_group,
    store_scalar,
    store_vec8,
)

LANES = 32
STAGES = 3
RING = STAGES * LANES * 4
COUNT = 5
"""Slices that `stream_kernel` moves."""


def mma_kernel(product):
    @cuda.jit
    def kernel(a, b, c):
        # Each warp one product; the fragments begin inside of larger arrays, one of them shared.
        words = cuda.local.array(8, uint32)
        sums = cuda.local.array(8, float32)
        t = int32(cuda.grid(1))
        for i in range(4):
            copy_scalar(words, 4 + i, a, 4 * t + i)
        for i in range(2):
            copy_scalar(words, 2 + i, b, 2 * t + i)
        for i in range(8):
            copy_scalar(sums, i, c, 8 * t + i)
        product(words, 4, words, 2, sums, 4)
        for i in range(8):
            copy_scalar(c, 8 * t + i, sums, i)

    return kernel


def load_kernel(load):
    @cuda.jit
    def kernel(x, at, y):
        # y[4 l : 4 l + 4] = what lane l gets of x, whose rows, in shared memory, begin at `at`.
        tiles = cuda.shared.array(512, uint32, alignment=16)
        words = cuda.local.array(8, uint32)
        lane = int32(cuda.threadIdx.x)
        for i in range(4):
            copy_vec4(tiles, 4 * lane + 128 * i, x, 4 * lane + 128 * i)
        cuda.syncthreads()
        load(words, 4, tiles, at[lane])
        for i in range(4):
            copy_scalar(y, 4 * lane + i, words, 4 + i)

    return kernel


@cuda.jit
def stream_kernel(x, y, per, end):
    # y = the COUNT slices of x, each lane's 16 bytes by another lane, through a ring of three;
    # zeros from element `end` of x on. per: elements in 16 bytes.
    ring = cuda.shared.array(RING, uint32, alignment=16)
    lane = int32(cuda.threadIdx.x)
    for turn in range(1 - STAGES, COUNT):
        if turn >= 0:
            cp_async_wait_group(1)
            cuda.syncthreads()
        ahead = int32(turn + STAGES - 1)
        at = int32((ahead * LANES + lane) * per)
        cp_async(ring, int32((ahead % STAGES * LANES + lane) * 4), x, at, at < end)
        cp_async_commit_group()
        if turn >= 0:
            other = int32(turn % STAGES * LANES + LANES - 1 - lane)
            copy_vec4(y, int32((turn * LANES + LANES - 1 - lane) * 4), ring, other * 4)
    cp_async_wait_group(0)


@cuda.jit
def store_kernel(x, y, z):
    # y = x, eight elements by each thread; z = the fourth of each eight.
    values = cuda.local.array(11, float32)
    t = int32(cuda.grid(1))
    for i in range(8):
        copy_scalar(values, 3 + i, x, 8 * t + i)
    store_vec8(y, 8 * t, values, 3)
    store_scalar(z, t, values, 6)


@cuda.jit
def round_kernel(x, y):
    words = cuda.local.array(2, uint32)
    t = int32(cuda.grid(1))
    if t < x.size:
        words[1] = x[t]
        cvt_rna_tf32(words, 1)
        y[t] = words[1]


@cuda.jit
def convert_kernel(x, y):
    t = int32(cuda.grid(1))
    if t < x.size:
        y[t] = narrow(widen(x[t]), y)


@cuda.jit
def wait_for_variable_kernel(n):
    cp_async_wait_group(n)


@cuda.jit
def mixed_copy_kernel(x, y):
    copy_vec4(y, 0, x, 0)


@cuda.jit
def mma_of_floats_kernel(x):
    values = cuda.local.array(4, float32)
    mma_tf32(values, 0, values, 0, values, 0)


mma_tf32_kernel = mma_kernel(mma_tf32)
mma_bf16_kernel = mma_kernel(mma_bf16)
ldmatrix_x4_kernel = load_kernel(ldmatrix_x4)
ldmatrix_x4_trans_kernel = load_kernel(ldmatrix_x4_trans)


# --- the script

F32, F64, U16, U32 = (
    types.Array(t, 1, "C") for t in (float32, types.float64, types.uint16, uint32)
)
I32, INTEGER = types.Array(int32, 1, "C"), types.int64
OLD, NEW = ((7, 5),), ((8, 0), (9, 0))
KERNELS = {
    "mma_tf32": (mma_tf32_kernel, (U32, U32, F32), NEW),
    "mma_bf16": (mma_bf16_kernel, (U32, U32, F32), NEW),
    "ldmatrix_x4": (ldmatrix_x4_kernel, (U32, I32, U32), NEW),
    "ldmatrix_x4_trans": (ldmatrix_x4_trans_kernel, (U32, I32, U32), NEW),
    "stream float32": (stream_kernel, (F32, U32, INTEGER, INTEGER), NEW),
    "stream bfloat16": (stream_kernel, (U16, U32, INTEGER, INTEGER), NEW),
    "store float32": (store_kernel, (F32, F32, F32), NEW),
    "store bfloat16": (store_kernel, (F32, U16, U16), NEW),
    "round": (round_kernel, (U32, U32), NEW),
    "convert float32": (convert_kernel, (F32, F32), OLD),
    "convert float64": (convert_kernel, (F64, F64), OLD),
    "widen": (convert_kernel, (U16, F32), OLD),
    "narrow": (convert_kernel, (F32, U16), OLD),
    "wait for a variable": (wait_for_variable_kernel, (INTEGER,), NEW[:1]),
    "mma of floats": (mma_of_floats_kernel, (F32,), NEW[:1]),
    "copy_vec4 of two types": (mixed_copy_kernel, (F32, U32), NEW[:1]),
}
"""Kernel, types of its arguments, architectures."""


def main():
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import sass

    rows = []
    for name, (kernel, signature, architectures) in KERNELS.items():
        for architecture in architectures:
            row = {"name": name, "architecture": architecture}
            rows.append(row)
            try:
                ptx, _ = cuda.compile(
                    *(kernel.py_func, signature),
                    **{"cc": architecture, "device": False, "abi": "numba"},
                    output="ptx",
                )
            except Exception as error:  # any failure to compile is an issue
                row["error"] = str(error)
                continue
            row["local"], row["double"] = ".local" in ptx, ".f64" in ptx
            if not sass.missing_tools():
                row["resources"], listing = sass.assemble(ptx, architecture)
                lines, _ = sass.instructions_of(listing)
                row["instructions"] = Counter(line.split()[0] for line in lines)
                row["waits"] = [line for line in lines if line.startswith("DEPBAR")]
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
