"""Damaged copies of files."""

import numpy as np


def damaged(whole, count, seed=0):
    """`count` copies of some bytes: each cut off somewhere, or with one bit flipped.

    A quarter of the flips is in the first kilobyte, where formats have their heads.
    """
    rng = np.random.default_rng(seed)
    for case in range(count):
        if case % 4 == 0:
            yield whole[: int(rng.integers(0, len(whole)))]
            continue
        data = bytearray(whole)
        place = int(rng.integers(0, 1024 if case % 4 == 1 else len(whole)))
        data[place] ^= 1 << int(rng.integers(0, 8))
        yield bytes(data)
