"""What is installed, and whether cuda:0 is the simulator, for the tests of the doctor."""

import importlib.metadata

import pytest


@pytest.fixture
def install(monkeypatch):
    """install({name: version}) replaces what is installed."""

    def replace(versions):
        def version(name):
            if name not in versions:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(importlib.metadata, "version", version)

    return replace


@pytest.fixture
def real_gpu(monkeypatch):
    """cuda:0 is not the simulator."""
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")
