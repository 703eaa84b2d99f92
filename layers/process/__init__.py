"""What is set up once in a process: threads, Numba's cache, the line at a compilation, forks."""
