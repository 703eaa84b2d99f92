"""BLAS multiplies with one thread, and OpenMP's threads sleep between loops.

Both are read from the environment when NumPy is first imported, which is why `layers/__init__.py`
imports this file first. The host loops use all cores by themselves (`prange`), and the fast tier
splits large products (`layers/fast/host/threads.py`); more threads inside BLAS would compete with
them for the same cores. A value that the user has set is kept.
"""

import os
import sys

BLAS = "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"

IN_TIME = "numpy" not in sys.modules
"""Whether NumPy was not imported before: only then the settings have an effect."""

for name in BLAS:
    os.environ.setdefault(name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
