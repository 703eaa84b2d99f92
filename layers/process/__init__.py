"""What is set up once in a process: Numba's cache, a line at the first compilation, forks."""
