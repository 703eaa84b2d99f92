"""Marks of single parameters."""

from typing import Any

import pytest


def long(*values: Any) -> Any:
    """Values of a parametrized test, with which `pytest --full` alone runs it."""
    return pytest.param(*values, marks=pytest.mark.full)
