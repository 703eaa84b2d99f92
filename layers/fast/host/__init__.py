"""The fast host loops: BLAS and vectorized loops in several threads."""
