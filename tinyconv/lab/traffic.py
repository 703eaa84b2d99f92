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
*wavefront*, each bank gives out one word, to all lanes that ask for it. Lanes that ask for
different words of one bank queue: the largest number of distinct words in a bank is the number of
*ways* of the conflict, and of wavefronts it takes; 1 means none. Elements of 8 bytes are served
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

from collections.abc import Callable
from operator import attrgetter

import numpy as np

from layers.simulator.trace import GLOBAL, SHARED, Trace
from tinyconv.lab.requests import costs, flags, floor, lanes_of, numbers
from tinyconv.lab.traffic_table import OPERATIONS, LineTraffic, Traffic


def measure(trace: Trace, operations: Callable[..., int] | None = None) -> Traffic:
    """What the launch's accesses to global and shared memory cost.

    operations: counts the floating-point operations of a launch from its arguments, for its
    arithmetic intensity (also of one that failed half-way, those of a whole one).
    """
    lanes = lanes_of(trace)
    # What an asynchronous copy brings is counted where it began.
    lanes = lanes[~flags(trace, "arrival")[lanes["instruction"]]]
    line = numbers(lanes["instruction"], lanes["op"], lanes["shared"])
    request = numbers(line, lanes["request"])
    cost = costs(lanes, request)
    line_of = np.zeros(len(cost.sectors), np.int64)
    line_of[request] = line

    lines = []
    for number in range(int(line.max(initial=-1)) + 1):
        own, requests = lanes[line == number], line_of == number
        instruction, op, shared = own[["instruction", "op", "shared"]][0].tolist()
        names = dict.fromkeys(trace.arrays[i].name for i in np.unique(own["array"]))
        lines.append(
            LineTraffic(
                instruction=trace.instructions[instruction],
                array=", ".join(names),
                space=SHARED if shared else GLOBAL,
                op=OPERATIONS[op],
                requests=int(requests.sum()),
                lanes=len(own),
                bytes=int(own["size"].sum()),
                sectors=int(cost.sectors[requests].sum()),
                ideal_sectors=int(cost.ideal[requests].sum()),
                conflict_ways=int(cost.ways[requests].max()),
                wavefronts=int(cost.wavefronts[requests].sum()),
                ideal_wavefronts=int(cost.passes[requests].sum()),
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
        *floor(trace),
        None if operations is None else int(operations(*trace.arguments)),
    )
