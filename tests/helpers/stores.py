"""Small prepared files."""

from pathlib import Path

import numpy as np
from small import random_photos

from tinyconv.data import PhotoSet
from tinyconv.data.store_writer import StoreWriter

SETTINGS = {"source": "drawn", "size": 5}


def photo_sets(train: int = 7, val: int = 3, size: int = 5) -> dict[str, PhotoSet]:
    """Two sets of random photos."""
    return {
        "train": random_photos(train, size=size, seed=1),
        "val": random_photos(val, size=size, seed=2),
    }


def new_store(path: Path, sets: dict[str, PhotoSet], spare: int = 0) -> StoreWriter:
    """A prepared file with rows for the photos and `spare` more in each split, none written yet."""
    names = sets["train"].class_names
    return StoreWriter(
        path,
        size=sets["train"].size,
        rows={split: len(photos) + spare for split, photos in sets.items()},
        class_ids=[f"n{i:08}" for i in range(len(names))],
        class_names=names,
        settings=SETTINGS,
    )


def write_store(path: Path, sets: dict[str, PhotoSet], spare: int = 0) -> Path:
    """A complete prepared file of the photos."""
    with new_store(path, sets, spare) as writer:
        for split, photos in sets.items():
            writer.write_rows(split, 0, photos.images)
        writer.finish({split: photos.labels for split, photos in sets.items()})
    return path


def rows(photos, ids) -> np.ndarray:
    """The images of `ids`, by `copy_rows`."""
    out = np.full((len(ids), photos.size, photos.size, 3), 77, np.uint8)
    photos.copy_rows(np.asarray(ids, np.int64), out)
    return out
