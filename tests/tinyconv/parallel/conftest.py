"""A run of one process, beside which those of several ranks are put."""

from pathlib import Path

import pytest
from fork_server import ForkServer
from photo_bytes import photo_folder
from rank_runs import SMALL

SCRIPT = Path(__file__).resolve().parents[3] / "examples" / "train_alexnet.py"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of photos: 16 to train with, 6 to validate."""
    return photo_folder(tmp_path_factory.mktemp("data") / "photos", train=8, val=3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The example on one device: quickly started, since it has been imported."""
    with ForkServer(SCRIPT, tmp_path_factory.mktemp("log") / "printed") as server:
        yield server


@pytest.fixture(scope="module")
def whole(alone, photos, tmp_path_factory):
    """The folder of a run by one process, which nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    arguments = ["--data", photos, "--out", out, "--device", "cpu", *SMALL]
    assert alone.run(arguments) == 0, alone.printed()
    return out
