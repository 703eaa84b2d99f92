"""The cost model: from the accesses of single threads to the requests of warps, and their costs.

`traffic.py` explains the rules and what they assume, and adds the costs up by line of the source;
`steps.py` shows each request by itself. Everything here works on whole columns of a trace at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from layers.simulator.arrays import WARP
from layers.simulator.trace import GLOBAL, LOCAL, SHARED, Trace, warp_of

SECTOR = 32
"""Bytes that global memory moves at once."""
BANKS = 32
WORD = 4
"""Bytes that a bank of shared memory gives out at once."""
ALIGNMENT = 256
"""Of CUDA's allocations, in bytes."""

READ, WRITE, ATOMIC = range(3)

LANE = np.dtype(
    [
        *((name, np.int64) for name in ("row", "offset", "address", "occurrence", "request")),
        *((name, np.int32) for name in ("instruction", "op", "array", "width", "size")),
        *((name, np.int32) for name in ("block", "epoch", "thread")),
        ("shared", np.bool_),
    ]
)
"""What one lane asks for at once. row: of `trace.accesses`, the first of those that are meant.
op: READ, WRITE or ATOMIC. array, offset: as there; width: elements from there on; address, size:
the same in bytes. occurrence: how many times the thread has executed the instruction before,
since the last barrier of its block. request: lanes of a warp with the same number execute the
instruction together, though they may reach different arrays."""


def lanes_of(trace: Trace) -> np.ndarray:
    """Of each lane what it asks for, as an array of LANE, in the order of the trace.

    Local arrays are left out. An atomic operation is one row, and so is a `copy_vec4`.
    """
    first, sizes = starts(trace)
    space = np.array([array.space for array in trace.arrays] or [LOCAL])
    lanes = np.zeros(len(trace.accesses), LANE)
    for name in ("instruction", "array", "offset"):
        lanes[name] = trace.accesses[name]
    lanes["row"] = np.arange(len(lanes))
    lanes["size"] = sizes[lanes["array"]]
    lanes["address"] = first[lanes["array"]] + lanes["offset"] * lanes["size"]
    lanes["shared"] = space[lanes["array"]] == SHARED
    segments = trace.segments[trace.accesses["segment"]]
    for name in ("block", "epoch", "thread"):
        lanes[name] = segments[name]
    atomic = flags(trace, "atomic")[lanes["instruction"]]
    lanes["op"] = np.where(atomic, ATOMIC, trace.accesses["write"])
    lanes["width"] = 1
    lanes = lanes[space[lanes["array"]] != LOCAL]

    # The simulator reads once or twice for an atomic, and then writes: the last stands for all.
    goes_on = lanes["op"] == ATOMIC
    goes_on &= ~trace.accesses["write"][lanes["row"]]
    for field in ("array", "offset", "block", "epoch", "thread", "instruction"):
        goes_on &= lanes[field] == np.roll(lanes[field], -1)
    goes_on[-1:] = False
    lanes = lanes[~goes_on]

    # Of the accesses of a `copy_vec4` the first stands for all four, with four times the size.
    own = [lanes[name] for name in ("instruction", "op", "block", "epoch", "thread")]
    asked = flags(trace, "vectorized").astype(int)[lanes["instruction"]]
    at_once = np.minimum(asked, 16 // np.maximum(1, lanes["size"]))
    lanes["width"] = np.where(asked > 0, at_once, 1)
    lanes["occurrence"], part = np.divmod(times_before(*own), lanes["width"])
    lanes = lanes[part == 0]
    lanes["size"] *= lanes["width"]
    own = [lanes[name] for name in ("instruction", "op", "block", "epoch", "occurrence")]
    lanes["request"] = numbers(*own, warp_of(lanes["thread"]))
    return lanes


def flags(trace: Trace, name: str) -> np.ndarray:
    """A flag of each instruction of the trace, as an array; one False if there are none."""
    return np.array([getattr(each, name) for each in trace.instructions] or [False])


def starts(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Of each array: the address of its first element, were it CUDA's; the size of an element."""
    owners: dict[int, tuple[int, int]] = {}  # by identity: where NumPy has it, and where CUDA would
    free = 0
    starts = []
    for array in trace.arrays:
        owner = array.data
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if id(owner) not in owners:
            low, high = np.lib.array_utils.byte_bounds(owner)
            owners[id(owner)] = low, free
            free += max(1, -(-(high - low) // ALIGNMENT)) * ALIGNMENT
        numpys, cudas = owners[id(owner)]
        starts.append(array.address - numpys + cudas)
    sizes = [array.data.itemsize for array in trace.arrays]
    return np.array(starts or [0], np.int64), np.array(sizes or [0], np.int64)


# --- groups of rows that agree in some columns


def in_groups(*keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows sorted by keys, the first key first; and whether each of these begins a group.

    Rows that agree in all keys stay in their order.
    """
    order = np.lexsort(keys[::-1])
    fresh = np.zeros(len(order), bool)
    fresh[:1] = True
    for key in keys:
        fresh[1:] |= np.diff(key[order]) != 0
    return order, fresh


def distinct(*keys: np.ndarray) -> np.ndarray:
    """The first row of each group."""
    order, fresh = in_groups(*keys)
    return order[fresh]


def numbers(*keys: np.ndarray) -> np.ndarray:
    """Of each row the number of its group, from 0."""
    order, fresh = in_groups(*keys)
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(fresh) - 1
    return number


def times_before(*keys: np.ndarray) -> np.ndarray:
    """Of each row how many of its group come before it."""
    order, fresh = in_groups(*keys)
    first = np.flatnonzero(fresh)
    nth = np.empty(len(order), np.int64)
    nth[order] = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    return nth


# --- costs


class Costs(NamedTuple):
    """What each request costs, an array for each cost; 0 for those of the other memory."""

    sectors: np.ndarray
    ideal: np.ndarray
    """The least number of sectors for as many bytes."""
    wavefronts: np.ndarray
    ways: np.ndarray
    """Of the worst conflict; 1: none."""
    passes: np.ndarray
    """Wavefronts without conflicts."""


def costs(lanes: np.ndarray, request: np.ndarray) -> Costs:
    """What each request costs; request: the numbers, from 0, of those that `lanes` belong to."""
    count = int(request.max(initial=-1)) + 1
    shared = lanes["shared"]
    of_global = _sectors(lanes[~shared], request[~shared], count)
    return Costs(*of_global, *_wavefronts(lanes[shared], request[shared], count))


def _sectors(lanes: np.ndarray, request: np.ndarray, count: int) -> tuple[np.ndarray, ...]:
    address, size = lanes["address"], lanes["size"]
    # An element that straddles two sectors (only a misaligned one can) counts in both.
    sector = np.concatenate([address // SECTOR, (address + size - 1) // SECTOR])
    twice = np.concatenate([request, request])
    touched = np.bincount(twice[distinct(twice, sector)], minlength=count)
    own = distinct(request, address)
    asked = np.bincount(request[own], size[own], count).astype(np.int64)
    return touched, -(-asked // SECTOR)


def _wavefronts(lanes: np.ndarray, request: np.ndarray, count: int) -> tuple[np.ndarray, ...]:
    words = np.maximum(1, lanes["size"] // WORD)  # of an element, and as many passes for a warp
    most = int(words.max(initial=1))
    in_pass = request * most + lanes["thread"] % WARP * words // WARP
    # One row for each word of each element.
    pass_of = np.repeat(in_pass, words)
    nth = np.arange(len(pass_of)) - np.repeat(np.cumsum(words) - words, words)
    word = np.repeat(lanes["address"] // WORD, words) + nth
    own = distinct(pass_of, word)
    queue, length = np.unique(pass_of[own] * BANKS + word[own] % BANKS, return_counts=True)
    longest = np.zeros(count * most, np.int64)
    np.maximum.at(longest, queue // BANKS, length)
    by_request = longest.reshape(count, most)
    ways = by_request.max(axis=1, initial=0)
    return by_request.sum(axis=1), ways, np.count_nonzero(by_request, axis=1)


def floor(trace: Trace) -> tuple[int, int]:
    """Distinct bytes of global memory read before they are written, and distinct bytes written."""
    first, sizes = starts(trace)
    spaces = np.array([array.space for array in trace.arrays] or [LOCAL])
    accesses = trace.accesses[spaces[trace.accesses["array"]] == GLOBAL]
    size, write = sizes[accesses["array"]], accesses["write"]
    address = first[accesses["array"]] + accesses["offset"] * size
    before = distinct(address)  # the first access in the order of the trace
    read = before[~write[before]]
    written = np.flatnonzero(write)
    written = written[distinct(address[written])]
    return int(size[read].sum()), int(size[written].sum())
