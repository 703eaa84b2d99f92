"""Preparations in the test's own process, and ways to stop them."""

from pathlib import Path

import numpy as np
from photo_bytes import noisy_jpeg, put
from tar_bytes import WNIDS, class_folders

from tinyconv.data.prepare import prepare

IDS = tuple(sorted(WNIDS))


def photos_to_prepare(folder: Path) -> Path:
    """Three classes, five photos each for training, two for validation; two files are damaged."""
    for name, content in class_folders(train=5).items():
        put(folder / name, content)
    put(folder / f"train/{IDS[0]}/train_1b.PNG", noisy_jpeg()[:400])
    put(folder / f"val/{IDS[2]}/odd\n\x1b.PNG", b"no photo")
    return folder


def made(source, out, size=8, **options):
    """Prepare with one thread; returns the lines of the report and the result."""
    lines = []
    return lines, prepare(source, out, size=size, workers=1, report=lines.append, **options)


def left_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def pixels(photos):
    out = np.empty((len(photos), photos.size, photos.size, 3), np.uint8)
    photos.copy_rows(np.arange(len(photos)), out)
    return out


class Bar:
    """A progress bar that calls `moved` after each batch of photos."""

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
