"""These tests record launches themselves, or want them not to be recorded."""

import pytest


@pytest.fixture(autouse=True)
def checked_launches() -> None:
    """Instead of the one in tests/conftest.py: launches are not checked."""
