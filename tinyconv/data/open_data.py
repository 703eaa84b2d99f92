"""Opens the photos of a run: drawn ones, a folder, or a prepared HDF5 file."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tinyconv.data.folder import read_folder
from tinyconv.data.listing import Skipped
from tinyconv.data.photos import PhotoSet
from tinyconv.data.sources import Options
from tinyconv.data.statistics import Statistics
from tinyconv.data.store import PhotoStore
from tinyconv.data.synthetic import synthetic


class Data:
    """Training and validation photos, and what has to be known of them as a whole.

    Attributes: `train` and `val` (PhotoSet, in memory or of a store), `mean_image` (S, S, 3),
    `eigenvalues` (3,) and `eigenvectors` (3, 3) of the colours of the training set, `class_ids`,
    `class_names`, `skipped` (files of a folder that are no photos), `source` in words. Use it in a
    `with` statement, which closes the file.
    """

    mean_image: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray

    def __init__(self, train: Any, val: Any, source: str, skipped: Iterable[Skipped] = ()) -> None:
        self.train, self.val, self.source, self.skipped = train, val, source, list(skipped)
        self.class_names = list(train.class_names)
        self.class_ids = self.class_names
        self._store: PhotoStore | None = None

    @classmethod
    def of_store(cls, store: PhotoStore) -> "Data":
        """The photos of a prepared file, with the statistics that were recorded in it."""
        data = cls(store.train, store.val, f"{store.path}, {store.size}×{store.size} pixels")
        data.class_ids, data._store = list(store.class_ids), store
        data.mean_image = store.mean_image
        data.eigenvalues, data.eigenvectors = store.eigenvalues, store.eigenvectors
        return data

    @classmethod
    def of_photos(
        cls, train: PhotoSet, val: PhotoSet, source: str, skipped: Iterable[Skipped] = ()
    ) -> "Data":
        """Photos in memory; the statistics of the training set are taken now."""
        data = cls(train, val, source, skipped)
        statistics = Statistics(train.images.shape[1])
        statistics.add(train.images)
        data.mean_image = statistics.mean_image()
        data.eigenvalues, data.eigenvectors = statistics.eigenvalues, statistics.eigenvectors
        return data

    def close(self) -> None:
        """Close the file, if the photos are in one."""
        if self._store is not None:
            self._store.close()

    def __enter__(self) -> "Data":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_data(
    path: str | Path | None,
    square: int | None,
    *,
    classes: int | None = None,
    val_share: float | None = None,
    seed: int = 0,
    progress: Callable[..., Iterable] | None = None,
) -> Data:
    """The photos at `path`: a folder {train,val}/<class>/, a file of `prepare`, or None: drawn.

    square: side of the photos in pixels (a prepared file has its own; another one is refused, None
    takes it as it is). classes: only the first so many of a folder; val_share: what to set aside of
    a folder <class>/. seed: of drawn photos, and of that share.
    ValueError (PhotoError, StoreError), in one line, if that gives no training set.
    """
    if path is not None and Path(path).is_file():
        if classes is not None:
            raise ValueError(f"{path}: a prepared file has its classes; --classes is for folders")
        if val_share is not None:
            raise ValueError(f"{path}: a prepared file has its val; --val-share is for folders")
        store = PhotoStore(path)
        if square is not None and square != store.size:
            store.close()
            raise ValueError(
                f"{path} holds squares of {store.size} pixels, and {square} are asked for"
            )
        if not len(store.train):
            store.close()
            raise ValueError(f"{path} has no training photos, only photos to evaluate with")
        return Data.of_store(store)
    if square is None:
        raise ValueError("open_data: photos of a folder need a size")
    if path is None:
        drawn = synthetic(size=square, seed=seed)
        return Data.of_photos(*drawn, f"drawn textures and shapes, {square}×{square} pixels")
    train, val, skipped = read_folder(
        path,
        square,
        classes=classes,
        options=Options(val_share=val_share, seed=seed),
        progress=progress,
    )
    return Data.of_photos(train, val, f"{path}, {square}×{square} pixels", skipped)
