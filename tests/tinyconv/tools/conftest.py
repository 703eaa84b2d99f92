"""What is installed, and whether cuda:0 is the simulator, for the tests of the doctor."""

import importlib.metadata
from types import SimpleNamespace

import pytest


@pytest.fixture
def install(monkeypatch):
    """install({name: version}) replaces what is installed."""

    def replace(versions):
        def distributions(name):
            return [SimpleNamespace(version=versions[name])] if name in versions else []

        monkeypatch.setattr(importlib.metadata, "distributions", distributions)

    return replace


@pytest.fixture
def real_gpu(monkeypatch):
    """cuda:0 is not the simulator."""
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")
