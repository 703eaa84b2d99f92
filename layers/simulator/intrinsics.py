"""Emulated intrinsics: Python functions that do in the simulator what one GPU instruction does.

A module that defines such functions registers itself:

    if SIMULATED:
        from layers.simulator import register_intrinsics, running

        register_intrinsics(__name__)

Frames of registered modules are skipped wherever the simulator names a place in a kernel: error
messages give the line that calls the intrinsic, a recorded access belongs to that call, a barrier
is identified by it, and pdb's `s` steps over the intrinsic's own lines.
"""

from __future__ import annotations

import sys

MODULES = [__package__, "numba.cuda.simulator"]
"""The packages that run a kernel, and the registered modules."""

FILES: set[str] = set()
"""The source files of the registered modules, as their code objects name them."""


def register_intrinsics(module: str) -> None:
    """Register the module named `module`; called at its top level with `__name__`.

    ValueError if no such module has been imported from a file.
    """
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        raise ValueError(f"no module {module!r} with a source file: pass __name__")
    FILES.add(file)
    if module not in MODULES:
        MODULES.append(module)


def is_skipped(module: str) -> bool:
    """Whether a frame of `module` belongs to the simulator or to an emulated intrinsic."""
    return any(module == name or module.startswith(f"{name}.") for name in MODULES)


def skip_patterns() -> list[str]:
    """The same modules as glob patterns, for the `skip` argument of `pdb.Pdb`."""
    return [pattern for name in MODULES for pattern in (name, f"{name}.*")]
