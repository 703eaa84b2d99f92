"""Preparations in the test's own process, and ways to stop them."""

from pathlib import Path

import pytest
from photo_bytes import laid_out, noisy_jpeg
from tar_bytes import WNIDS, class_folders

from tinyconv.data import decode
from tinyconv.data import prepare as module
from tinyconv.data.prepare import prepare

IDS = tuple(sorted(WNIDS))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three classes, five photos each for training, two for validation; two files are damaged."""
    files = class_folders(train=5)
    files[f"train/{IDS[0]}/train_1b.PNG"] = noisy_jpeg()[:400]
    files[f"val/{IDS[2]}/odd\n\x1b.PNG"] = b"no photo"
    return laid_out(tmp_path / "photos", files)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(decode, "BATCH", 2)
    monkeypatch.setattr(module, "SAVE_PHOTOS", 4)
    monkeypatch.setattr(module, "SAVE_SECONDS", 1e9)  # not even on a busy machine


def made(source, out, size=8, options=None, **settings):
    """Prepare with one thread; returns the lines of the report and the result."""
    lines = []
    done = prepare(source, out, options, size=size, workers=1, report=lines.append, **settings)
    return lines, done


def left_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


class Bar:
    """A progress bar that calls `moved` after each photo."""

    def __init__(self, iterable=(), total=None, initial=0, desc="", unit=""):
        self.iterable, self.desc, self.at = iterable, desc, initial

    def __iter__(self):
        return iter(self.iterable)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, count):
        self.at += count
        if self.desc == "decoding":
            self.moved()

    def moved(self):
        raise NotImplementedError


def stopping_at(place, error=KeyboardInterrupt):
    class Stop(Bar):
        def moved(self):
            if self.at >= place:
                raise error

    return Stop
