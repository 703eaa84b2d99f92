"""What a kernel's memory accesses cost, counted from a recorded launch, without a GPU.

    with simulator.record() as traces:
        kernel[grid, block](x, y)
    print(measure(traces[0]))

The 32 threads of a *warp* execute an instruction together. If it loads or stores, the warp sends
one *request* with up to 32 addresses, one for each lane that takes part. What a request costs is
decided by where its addresses lie:

Global memory comes in *sectors* of 32 bytes, and moves a whole sector or nothing. Neighbouring
lanes at neighbouring float32 elements need 128 bytes, which is 4 sectors: a *coalesced* request.
Lanes 32 bytes or more apart need a sector each, 32 of them, of which 7/8 go unused. The ideal of a
request is the least number of sectors that could hold the distinct bytes it asks for; efficiency
is ideal / sectors. (A *broadcast*, all lanes at one element, has sectors = ideal = 1.)

Shared memory has 32 *banks*: the 4-byte word number n of it is in bank n mod 32. In one cycle, one
*wavefront*, each bank gives out one word, to all lanes that want it. If the lanes want different
words of one bank they queue: the largest number of distinct words in a bank is the number of
*ways* of the conflict, and of wavefronts it takes; 1 is no conflict. Elements of 8 bytes are served
in two passes, the lower 16 lanes and then the upper 16, each with wavefronts of its own (16 bytes:
in four passes of 8 lanes).

What is called what in Nsight Compute, for loads (op_ld; stores are op_st):

    requests         l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum
    sectors          l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum
    sectors / ideal  memory_l2_theoretical_sectors_global and ..._global_ideal, loads and stores
    wavefronts       smsp__sass_l1tex_data_pipe_lsu_wavefronts_mem_shared_op_ld.sum

`benchmarks/ncu_traffic.py` sets ours beside Nsight Compute's. It leaves out the ideals: whether
Nsight, too, counts an address that several lanes share only once has not been checked.

What is assumed, and what cannot be seen
    - Each allocation starts at a multiple of 256 bytes, as CUDA's do; a view keeps its offset in
      the array that owns the memory. So NumPy's own addresses do not matter.
    - Threads of a warp are matched by count: the k-th time since the last syncthreads that they
      come to an instruction is one request. Lanes that leave a loop early are inactive in later
      rounds, as on hardware. Where some lanes *skip* a round that others execute (padding in a
      convolution), they are paired with the others' next round: requests is then a lower bound.
    - The source is counted, not the machine code. A compiler may load `x[i] * x[i]` once, keep in
      a register what it has just stored, or load four neighbouring elements at once.
    - Sectors are what the warps ask of the L1 cache; how many it has to fetch from L2 and DRAM is
      not modelled. The *floor* is what must move whatever the caches do: every byte that is read
      before the kernel itself writes it, once, and every byte that is written, once.
    - An atomic operation counts as one request, not as a read and a write; so does a `copy_vec4`
      (`layers/fast/conv/ptx.py`), with an element of 16 bytes. An asynchronous copy counts where
      it begins; `ldmatrix_x4` (`layers/fast/conv/mma.py`) as a read of 16 bytes by each lane.
    - Local arrays are left out: the compiler keeps small ones in registers.
"""

from __future__ import annotations

from operator import attrgetter

import numpy as np

from layers.simulator.arrays import WARP
from layers.simulator.trace import GLOBAL, LOCAL, SHARED, Trace
from tinyconv.lab.flops import FLOPS
from tinyconv.lab.requests import (
    count_sectors,
    count_wavefronts,
    firsts,
    floor,
    number_requests,
    starts,
)
from tinyconv.lab.traffic_table import OPERATIONS, LineTraffic, Traffic


def measure(trace: Trace, flops: int | None = None) -> Traffic:
    """What the launch's accesses to global and shared memory cost.

    flops: floating-point operations of the launch, for its arithmetic intensity; None: from FLOPS,
    if that knows the kernel (also of a launch that failed half-way, those of a whole one).
    """
    if flops is None and trace.kernel in FLOPS:
        flops = int(FLOPS[trace.kernel](*trace.arguments))
    spaces = np.array([array.space for array in trace.arrays] or [LOCAL])
    accesses = trace.accesses[spaces[trace.accesses["array"]] != LOCAL]
    first, sizes = starts(trace)
    arrays = accesses["array"]
    sizes = sizes[arrays]
    addresses = first[arrays] + accesses["offset"] * sizes
    shared = spaces[arrays] == SHARED
    must_move = floor(addresses[~shared], sizes[~shared], accesses["write"][~shared])

    # The simulator reads once or twice for an atomic, and then writes: the last stands for all.
    atomic = _flag(trace, "atomic")[accesses["instruction"]]
    goes_on = np.ones(len(accesses), bool)
    for field in ("array", "offset", "segment", "instruction"):
        goes_on &= accesses[field] == np.roll(accesses[field], -1)
    goes_on[-1:] = False
    once = ~atomic | accesses["write"] | ~goes_on
    accesses, arrays, sizes = accesses[once], arrays[once], sizes[once]
    addresses, shared, atomic = addresses[once], shared[once], atomic[once]

    # What a copy brings is counted where it began.
    begun = ~_flag(trace, "arrival")[accesses["instruction"]]
    accesses, arrays, sizes = accesses[begun], arrays[begun], sizes[begun]
    addresses, shared, atomic = addresses[begun], shared[begun], atomic[begun]

    # Of the accesses of a `copy_vec4` the first stands for all four, with four times the size.
    vectorized = _flag(trace, "vectorized")[accesses["instruction"]]
    width = np.where(vectorized, 16 // sizes, 1)
    first_ones = firsts(accesses, width)
    accesses, arrays, sizes = accesses[first_ones], arrays[first_ones], (sizes * width)[first_ones]
    addresses, shared, atomic = addresses[first_ones], shared[first_ones], atomic[first_ones]

    operation = np.where(atomic, OPERATIONS.index("atomic"), accesses["write"])
    spots = (accesses["instruction"].astype(np.int64) * len(OPERATIONS) + operation) * 2
    kinds, line = np.unique(spots + shared, return_inverse=True)
    request, thread = number_requests(trace, accesses["segment"], line)
    count = int(request.max(initial=-1)) + 1
    line_of = np.zeros(count, np.int64)
    line_of[request] = line

    sectors, ideal = count_sectors(request[~shared], addresses[~shared], sizes[~shared], count)
    banks = request[shared], addresses[shared], sizes[shared], (thread % WARP)[shared]
    wavefronts, ways, passes = count_wavefronts(*banks, count)

    def by_line(values: np.ndarray, of: np.ndarray = line_of) -> np.ndarray:
        return np.bincount(of, values, len(kinds)).astype(np.int64)

    columns = {
        "requests": by_line(np.ones(count)),
        "lanes": by_line(np.ones(len(line)), line),
        "bytes": by_line(sizes, line),
        "sectors": by_line(sectors),
        "ideal_sectors": by_line(ideal),
        "conflict_ways": np.zeros(len(kinds), np.int64),
        "wavefronts": by_line(wavefronts),
        "ideal_wavefronts": by_line(passes),
    }
    np.maximum.at(columns["conflict_ways"], line_of, ways)
    lines = []
    for number, kind in enumerate(kinds):
        touched = dict.fromkeys(trace.arrays[i].name for i in np.unique(arrays[line == number]))
        lines.append(
            LineTraffic(
                instruction=trace.instructions[kind // 2 // len(OPERATIONS)],
                array=", ".join(touched),
                space=SHARED if kind % 2 else GLOBAL,
                op=OPERATIONS[kind // 2 % len(OPERATIONS)],
                **{name: int(values[number]) for name, values in columns.items()},
            )
        )
    where = attrgetter("file", "line", "offset")
    lines.sort(key=lambda line: where(line.instruction))
    grid, block = trace.grid, trace.block
    return Traffic(
        trace.kernel,
        (grid.x, grid.y, grid.z),
        (block.x, block.y, block.z),
        tuple(lines),
        *must_move,
        flops,
    )


def _flag(trace: Trace, name: str) -> np.ndarray:
    """A flag of each instruction of the trace, as an array; one False if there are none."""
    return np.array([getattr(each, name) for each in trace.instructions] or [False])
