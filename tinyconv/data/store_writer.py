"""Writing a store of photos: rows as they come, the rest at the end (`store_format.py`).

    with StoreWriter.create(path, size=256, room={"train": n, "val": m}, ...) as writer:
        writer.write_rows("train", 0, images)          as often as needed, in any order
        writer.flush()                                 what was written is now on disk
        writer.finish(labels={"train": ..., "val": ...})

After `create` no byte of HDF5's structure changes. A program that is killed leaves a file that
`StoreWriter.reopen` goes on with; which rows are in it is for the caller to note, after `flush`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tinyconv.data import store_format
from tinyconv.data.statistics import Statistics
from tinyconv.data.store_format import HEAD, SETTINGS_LIMIT, SPLITS, Head, StoreError

METADATA = 2**17
"""Bytes for HDF5's own records: in one piece, or some would come to lie behind the images."""


class StoreWriter:
    """A store that is being written; made by `create` or `reopen`, not by hand.

    path; size: side S of the photos; room: rows of each split; class_ids, class_names; settings:
    as they were given to `create`; finished: nothing is missing. Errors of the disk are OSError
    with the path.
    """

    def __init__(self, path: Path, file: FileIO, head: Head) -> None:
        self.path, self._file, self._head = path, file, head
        try:
            with h5py.File(path, "r", locking=False) as structure:
                names = store_format.read_names(structure)
                self.class_ids, self.class_names, self.settings = names
                datasets = store_format.read_datasets(structure, head)
                self._places = {
                    name: (dataset.shape, dataset.dtype, store_format.stretch(dataset).offset)
                    for name, dataset in datasets.items()
                }
                self.size: int = datasets["train/images"].shape[1]
                self.room = {split: len(datasets[f"{split}/images"]) for split in SPLITS}
        except Exception as error:  # damaged bytes make HDF5 raise nearly anything
            file.close()
            reason = " ".join(str(error).split())
            raise StoreError(f"{path}: cannot be gone on with ({reason}); begin again") from error

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        size: int,
        room: Mapping[str, int],
        class_ids: Sequence[str],
        class_names: Sequence[str],
        settings: Mapping[str, Any],
    ) -> StoreWriter:
        """Make the file; its structure is on disk when this returns.

        size: side S in pixels; room: rows for each of "train" and "val", at least one each;
        class_ids, class_names: as many as there are classes, ids all different; settings: JSON
        values, at most 60,000 bytes. The file takes its full size at once, most of it a hole that
        needs no disk yet. ValueError for what does not fit, FileExistsError if there is such a
        file.
        """
        if size < 1 or set(room) != set(SPLITS) or min(room.values()) < 1:
            raise ValueError(
                "a store needs a size of at least 1 pixel and room for at least one photo in each "
                f"of {SPLITS}, not size {size} and room {dict(room)}"
            )
        ids, names = tuple(class_ids), tuple(class_names)
        if not ids or len(set(ids)) < len(ids) or len(ids) != len(names):
            raise ValueError(
                f"a store needs classes with different ids, a name for each; {len(ids)} ids, "
                f"{len(set(ids))} of them different, and {len(names)} names do not fit"
            )
        if odd := next((text for text in ids + names if "\0" in text), None):
            raise ValueError(f"class {odd!r} has a zero character in it, where HDF5 ends strings")
        path = Path(path)
        _create(path, size, room, ids, names, settings)
        return cls(path, *store_format.open_store(path, "r+"))

    @classmethod
    def reopen(cls, path: str | os.PathLike[str]) -> StoreWriter:
        """Go on with a file that `create` made, finished or not.

        StoreError if it is not one, or the program was killed before `create` returned.
        """
        path = Path(path)
        return cls(path, *store_format.open_store(path, "r+"))

    @property
    def finished(self) -> bool:
        """Nothing is missing: `PhotoStore` will take the file."""
        return self._head.digest is not None

    def write_rows(self, split: str, first: int, images: np.ndarray) -> None:
        """Put images, uint8 (n, S, S, 3), into rows first .. first + n − 1 of a split.

        Several threads may write at once. ValueError if they do not fit there.
        """
        room, shape = self.room.get(split, 0), (self.size, self.size, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise ValueError(
                f"{self.path}: images must be uint8 (n, {self.size}, {self.size}, 3), not "
                f"{images.dtype} {images.shape}"
            )
        if not 0 <= first <= first + len(images) <= room:
            raise ValueError(
                f"{self.path}: {len(images)} rows from {first} do not fit into the {room} of "
                f"{split!r}"
            )
        self._begin_to_write()
        self._write(self._head.images(split).offset + first * self.size**2 * 3, images)

    def flush(self) -> None:
        """Return when all that was written is on disk."""
        try:
            # Not on every system is there a call that leaves out the time stamps.
            getattr(os, "fdatasync", os.fsync)(self._file.fileno())
        except OSError as error:
            raise _with_path(error, self.path) from error

    def finish(
        self,
        labels: Mapping[str, np.ndarray],
        progress: Callable[..., Iterable] | None = None,
    ) -> None:
        """Read all rows once more, and write what they add up to; the store is complete then.

        labels: for each split int64 (count,), indices into the classes; the first `count` rows
        are used. Computes the digests of the rows, and of the training rows the statistics
        (`statistics.py`). progress wraps the iteration as tqdm does: progress(iterable, total=
        number of blocks). Killed at any moment, it can be called again. ValueError for labels
        that do not fit.
        """
        for split in SPLITS:
            self._check_labels(split, labels[split])
        self._begin_to_write()
        statistics, digests = Statistics(self.size), {split: hashlib.sha256() for split in SPLITS}
        counts = {split: len(labels[split]) for split in SPLITS}
        for split, images in store_format.rows_in_blocks(
            self._file, self._head, self.size, counts, progress
        ):
            digests[split].update(images.data)
            if split == "train":
                statistics.add(images)
        self._put("mean_image", statistics.mean_image())
        self._put("colour/covariance", statistics.covariance)
        self._put("colour/eigenvalues", statistics.eigenvalues)
        self._put("colour/eigenvectors", statistics.eigenvectors)
        for split in SPLITS:
            unused = np.full(self.room[split] - counts[split], -1, np.int64)
            self._put(f"{split}/labels", np.concatenate([labels[split], unused]))
            self._put(f"{split}/count", np.int64(counts[split]))
            self._put(f"{split}/images_sha256", np.frombuffer(digests[split].digest(), np.uint8))
        self.flush()
        digest = store_format.digest(self._file, self._head)
        self._set_head(self._head._replace(digest=digest))

    def close(self) -> None:
        """Close the file; whatever is written stays written."""
        self._file.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_labels(self, split: str, labels: np.ndarray) -> None:
        room, classes = self.room[split], len(self.class_ids)
        if labels.dtype != np.int64 or labels.ndim != 1 or not 1 <= len(labels) <= room:
            raise ValueError(
                f"{self.path}: labels of {split!r} must be int64 (count,), count from 1 to {room}, "
                f"not {labels.dtype} {labels.shape}"
            )
        if not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(
                f"{self.path}: labels of {split!r} run from {labels.min()} to {labels.max()}, and "
                f"there are {classes} classes"
            )

    def _put(self, name: str, values: np.ndarray | np.generic) -> None:
        """Write a small dataset in its place."""
        shape, dtype, offset = self._places[name]
        if values.shape != shape:
            raise ValueError(f"{self.path}: {name} is {values.shape}, not {shape}")
        self._write(offset, np.asarray(values, dtype))

    def _begin_to_write(self) -> None:
        """From now until the end of `finish` the file says that it is not complete."""
        if self.finished:
            self._set_head(self._head._replace(digest=None))

    def _set_head(self, head: Head) -> None:
        self._write(0, np.frombuffer(head.block(), np.uint8))
        self.flush()
        self._head = head

    def _write(self, offset: int, values: np.ndarray) -> None:
        try:
            _write_all(self._file, offset, values)
        except OSError as error:
            raise _with_path(error, self.path) from error


def _write_all(file: FileIO, offset: int, values: np.ndarray) -> None:
    rest = np.ascontiguousarray(values).reshape(-1).data.cast("B")
    while rest:
        count = os.pwrite(file.fileno(), rest, offset)
        rest, offset = rest[count:], offset + count


def _with_path(error: Exception, path: Path) -> OSError:
    number = getattr(error, "errno", None)
    reason = os.strerror(number) if number else " ".join(str(error).split())
    return OSError(number or errno.EIO, reason, str(path))


# --- the structure


def _create(
    path: Path,
    size: int,
    room: Mapping[str, int],
    class_ids: Sequence[str],
    class_names: Sequence[str],
    settings: Mapping[str, Any],
) -> None:
    """Make the file with everything but numbers and pixels; on disk when it returns.

    The head comes after the structure is on disk: a file with a head has all of it. OSError if
    there is such a file already, or the disk does not take it; then no file is left.
    """
    text = json.dumps(settings, sort_keys=True)
    if len(text) > SETTINGS_LIMIT:
        raise ValueError(f"settings: {len(text)} bytes of JSON, and {SETTINGS_LIMIT} is the limit")
    made = False
    with FileIO(path, "x") as file:
        try:
            # HDF5 says of a disk that is full or does not take files of this length ten obscure
            # lines. So this is tried first.
            _write_all(file, 0, np.zeros(METADATA, np.uint8))
            os.ftruncate(file.fileno(), sum(room.values()) * size**2 * 3)
            os.fsync(file.fileno())
            with h5py.File(
                path, "w", userblock_size=HEAD, meta_block_size=METADATA, locking=False
            ) as structure:
                structure.attrs["settings"] = np.bytes_(text)
                for name, strings in ("class_ids", class_ids), ("class_names", class_names):
                    _create_strings(structure, name, strings)
                for name, (shape, dtype) in store_format.layout(size, room).items():
                    _create_numbers(structure, name, shape, dtype)
                train, val = (store_format.stretch(structure[f"{s}/images"]) for s in SPLITS)
            os.fsync(file.fileno())
            head = Head(os.fstat(file.fileno()).st_size, train, val)
            _write_all(file, 0, np.frombuffer(head.block(), np.uint8))
            os.fsync(file.fileno())
            made = True
        except (OSError, RuntimeError) as error:  # HDF5's are either, for the same fault
            raise _with_path(error, path) from error
        finally:
            if not made:
                path.unlink(missing_ok=True)


def _create_numbers(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> None:
    """A dataset with its place in the file, and nothing in it: h5py itself would write zeros."""
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_layout(h5py.h5d.CONTIGUOUS)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    settings.set_obj_track_times(False)  # the same photos give the same bytes
    kind = h5py.h5t.py_create(np.dtype(dtype))
    space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    h5py.h5d.create(file.id, name.encode(), kind, space, settings, links)


def _create_strings(file: h5py.File, name: str, strings: Sequence[str]) -> None:
    encoded = [string.encode() for string in strings]
    kind = h5py.string_dtype("utf-8", max(1, max(map(len, encoded))))
    file.create_dataset(name, data=np.array(encoded, kind), dtype=kind, track_times=False)
