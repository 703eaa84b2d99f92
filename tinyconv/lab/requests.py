"""From single accesses to the requests of warps, and what each request needs: sectors, wavefronts.

The rules and what they assume are told in `tinyconv/lab/traffic.py`. Everything here works on whole
columns of a trace at once, one row for each access.
"""

from __future__ import annotations

import numpy as np

from layers.simulator.arrays import WARP
from layers.simulator.trace import Trace, warp_of

SECTOR = 32
"""Bytes that global memory moves at once."""
BANKS = 32
WORD = 4
"""Bytes that a bank of shared memory gives out at once."""
ALIGNMENT = 256
"""Of CUDA's allocations, in bytes."""


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


def number_requests(
    trace: Trace, segment: np.ndarray, line: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each access: the number of its request, and the thread in its block."""
    threads = trace.segments["thread"][segment].astype(np.int64)
    blocks = trace.segments["block"][segment].astype(np.int64)
    epochs = trace.segments["epoch"][segment].astype(np.int64)
    stretches = blocks * (int(epochs.max(initial=0)) + 1) + epochs  # of a block, between barriers
    many = int(stretches.max(initial=0)) + 1
    # The accesses of one thread by one instruction are in order: a stable sort keeps them so.
    one = (line * many + stretches) * trace.threads + threads
    order = np.argsort(one, kind="stable")
    first = np.flatnonzero(np.diff(one[order], prepend=-1))
    time = np.empty(len(one), np.int64)
    time[order] = np.arange(len(one)) - np.repeat(first, np.diff(first, append=len(one)))
    warps = stretches * -(-trace.threads // WARP) + warp_of(threads)
    in_line = warps * (int(time.max(initial=0)) + 1) + time
    key = line * (int(in_line.max(initial=0)) + 1) + in_line
    return np.unique(key, return_inverse=True)[1], threads


def firsts(accesses: np.ndarray, width: np.ndarray) -> np.ndarray:
    """The rows that begin a group of `width` accesses, by one thread's instruction, in order."""
    columns = ("instruction", "segment", "write")
    order = np.lexsort([accesses[column] for column in columns])  # stable: as in the trace
    fresh = np.ones(len(order), bool)
    if len(order):
        fresh[1:] = np.any([np.diff(accesses[column][order]) != 0 for column in columns], axis=0)
    starts = np.flatnonzero(fresh)
    nth = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return np.sort(order[nth % width[order] == 0])


def distinct(*keys: np.ndarray) -> np.ndarray:
    """Rows of one of each combination of keys, sorted by them, the first key first."""
    order = np.lexsort(keys[::-1])
    fresh = np.zeros(len(order), bool)
    fresh[:1] = True
    for key in keys:
        fresh[1:] |= np.diff(key[order]) != 0
    return order[fresh]


def count_sectors(
    request: np.ndarray, address: np.ndarray, size: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of each of `count` requests: sectors touched, and the least for as many bytes."""
    # An element that straddles two sectors (only a misaligned one can) counts in both.
    sector = np.concatenate([address // SECTOR, (address + size - 1) // SECTOR])
    twice = np.concatenate([request, request])
    touched = np.bincount(twice[distinct(twice, sector)], minlength=count)
    own = distinct(request, address)
    asked = np.bincount(request[own], size[own], count).astype(np.int64)
    return touched, -(-asked // SECTOR)


def count_wavefronts(
    request: np.ndarray, address: np.ndarray, size: np.ndarray, lane: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each of `count` requests: wavefronts, the worst conflict's ways, and passes."""
    words = np.maximum(1, size // WORD)  # of an element, and as many passes for a warp
    most = int(words.max(initial=1))
    turn = request * most + lane * words // WARP
    # One row for each word of each element.
    turn_of = np.repeat(turn, words)
    nth = np.arange(len(turn_of)) - np.repeat(np.cumsum(words) - words, words)
    word = np.repeat(address // WORD, words) + nth
    own = distinct(turn_of, word)
    queue, length = np.unique(turn_of[own] * BANKS + word[own] % BANKS, return_counts=True)
    longest = np.zeros(count * most, np.int64)
    np.maximum.at(longest, queue // BANKS, length)
    by_request = longest.reshape(count, most)
    ways = by_request.max(axis=1, initial=0)
    return by_request.sum(axis=1), ways, np.count_nonzero(by_request, axis=1)


def floor(address: np.ndarray, size: np.ndarray, write: np.ndarray) -> tuple[int, int]:
    """Distinct bytes read before they are written, and distinct bytes written."""
    first = distinct(address)  # lexsort is stable: the first access in the order of the trace
    read = first[~write[first]]
    written = np.flatnonzero(write)
    written = written[distinct(address[written])]
    return int(size[read].sum()), int(size[written].sum())
