"""These tests check kernels with planted faults themselves."""

import pytest

from tinyconv.lab import compiler


@pytest.fixture(autouse=True)
def checked_launches() -> None:
    """Instead of the one in tests/conftest.py: launches are not checked."""


@pytest.fixture(autouse=True)
def compilation(monkeypatch, request):
    """Nothing is compiled except in tests of that: it takes a second."""
    monkeypatch.setattr(compiler, "enabled", "compiles" in request.fixturenames)


@pytest.fixture
def compiles(compilation):
    """Kernels are compiled; skips the test where there is no compiler."""
    from numba import cuda

    @cuda.jit
    def simple(x):
        x[0] = 1

    import numpy as np

    if reason := compiler.submit(simple, (np.ones(1),)).result().unable:
        pytest.skip(reason)
