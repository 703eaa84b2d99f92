"""A laboratory for kernels, without a GPU: what one does wrong, what it costs, how it looks.

Everything here looks at recorded launches of the simulator (`layers/simulator/trace.py`).
"""
