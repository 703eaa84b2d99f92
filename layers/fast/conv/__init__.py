"""Convolution on a GPU, rung after rung: shared memory, tiles, tensor cores."""
