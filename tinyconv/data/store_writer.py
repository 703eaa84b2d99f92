"""Writes the file of prepared photos (`store.py`).

    with StoreWriter(path, size=256, rows={"train": n, "val": m}, ...) as writer:
        writer.write_rows("train", 0, images)          repeatedly, in any order
        writer.sync()                                  everything written so far is on disk
        writer.finish(labels={"train": ..., "val": ...})

h5py makes the structure in a temporary file without rows. Its bytes are then copied into `path`,
whose rows are left alone: a StoreWriter for the same photos continues an unfinished file, and
nothing of HDF5's structure in that file has to be trusted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tinyconv.data.photos import SPLITS
from tinyconv.data.statistics import Statistics
from tinyconv.data.store import HEADER, Header, checksum

FULL = errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)
"""What a write to a full disk, or beyond a quota, fails with."""

BLOCK = 2**24
"""Bytes read at a time by the pass over all rows."""

METADATA = 2**17
"""Bytes for HDF5's own records, in one piece: some would be behind the images otherwise."""


class StoreWriter(FileIO):
    """A file of prepared photos that is being written; a context manager.

    size: side S of the photos in pixels; rows: number of photos in "train" and "val", 0 in one of
    them at most; class_ids, class_names: one of each per class; settings: JSON values. The file has
    its full length at once, most of it a hole that takes no disk space yet. If it exists, its rows
    are kept and everything else is written again. OSError if the disk is full or fails.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        size: int,
        rows: Mapping[str, int],
        class_ids: Sequence[str],
        class_names: Sequence[str],
        settings: Mapping[str, Any],
    ) -> None:
        self.path, self.size, self.rows = Path(path), size, dict(rows)
        self._offsets: dict[str, int] = {}
        names = {"class_ids": class_ids, "class_names": class_names}
        structure, length = self._structure(names, json.dumps(settings, sort_keys=True))
        train, val = ((self._offsets[f"{s}/images"], self.rows[s] * size**2 * 3) for s in SPLITS)
        self._header = Header(length, train, val)
        super().__init__(self.path, "r+" if self.path.exists() else "w+")
        try:
            self.truncate(length)
            self._write(0, self._header.block() + structure[HEADER:])
            self.sync()
        except BaseException:
            self.close()
            raise

    def write_rows(self, split: str, first: int, images: np.ndarray) -> None:
        """Write images, uint8 (n, S, S, 3), to rows first .. first + n − 1 of a split."""
        self._write(self._offsets[f"{split}/images"] + first * self.size**2 * 3, images.tobytes())

    def sync(self) -> None:
        """Return when everything written so far is on disk."""
        os.fsync(self.fileno())

    def finish(
        self,
        labels: Mapping[str, np.ndarray],
        progress: Callable[..., Iterable] = lambda blocks, total: blocks,
    ) -> None:
        """Read all rows again, write what is computed from them, and mark the file as complete.

        labels: for each split int64 (count,), indices into the classes; only the first `count`
        rows are used. Writes the checksums of the rows and the statistics of the training rows
        (`statistics.py`). progress(iterable, total=number of blocks) wraps the iteration.
        """
        counts = {split: len(labels[split]) for split in SPLITS}
        statistics, sha = Statistics(self.size), {split: hashlib.sha256() for split in SPLITS}
        square, step = (self.size, self.size, 3), max(1, BLOCK // (self.size**2 * 3))
        blocks = [(split, first) for split in SPLITS for first in range(0, counts[split], step)]
        for split, first in progress(blocks, total=len(blocks)):
            shape = (min(step, counts[split] - first), *square)
            offset = self._offsets[f"{split}/images"] + first * self.size**2 * 3
            rows = np.fromfile(self.path, np.uint8, math.prod(shape), offset=offset).reshape(shape)
            sha[split].update(rows.data)
            if split == "train":
                statistics.add(rows)
        for split in SPLITS:
            unused = np.full(self.rows[split] - counts[split], -1)
            self._put(f"{split}/labels", np.concatenate([labels[split], unused]), "<i8")
            self._put(f"{split}/count", counts[split], "<i8")
            self._write(self._offsets[f"{split}/images_sha256"], sha[split].digest())
        if statistics.count:
            self._put("mean_image", statistics.mean_image(), "<f4")
            for name in ("covariance", "eigenvalues", "eigenvectors"):
                self._put(f"colour/{name}", getattr(statistics, name), "<f8")
        self.sync()
        self._write(0, self._header._replace(checksum=checksum(self.path, self._header)).block())
        self.sync()

    def _put(self, name: str, values: Any, dtype: str) -> None:
        self._write(self._offsets[name], np.asarray(values, dtype).tobytes())

    def _write(self, offset: int, content: bytes) -> None:
        self.seek(offset)
        rest = memoryview(content)
        while rest:
            rest = rest[self.write(rest) :]

    def _structure(self, names: Mapping[str, Sequence[str]], settings: str) -> tuple[bytes, int]:
        """All bytes before the image rows, and the length of the file; sets the offsets."""
        temporary = self.path.with_name(f"{self.path.name}.structure")
        try:
            # HDF5 reports a full disk, or a limit on file sizes, in ten obscure lines: try first.
            with FileIO(temporary, "w") as file:
                file.write(bytes(METADATA))
                file.truncate(2 * METADATA + sum(self.rows.values()) * (self.size**2 * 3 + 8))
                os.fsync(file.fileno())
            with h5py.File(
                temporary, "w", userblock_size=HEADER, meta_block_size=METADATA, locking=False
            ) as structure:
                structure.attrs["settings"] = np.bytes_(settings)
                for name, texts in names.items():
                    encoded = [text.encode() for text in texts]
                    kind = h5py.string_dtype("utf-8", max(1, max(map(len, encoded))))
                    structure.create_dataset(name, data=np.array(encoded, kind), track_times=False)
                early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)  # the place, without values
                early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
                early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
                for name, (form, kind) in self._datasets().items():
                    value = None if form else 0  # h5py knows no early allocation of scalars
                    made = structure.create_dataset(name, form, kind, value, dcpl=early)
                    self._offsets[name] = made.id.get_offset()
            length = temporary.stat().st_size
            for split, following in ("val", length), ("train", self._offsets["val/images"]):
                if not self.rows[split]:  # has no place
                    self._offsets[f"{split}/images"] = following
            with FileIO(temporary) as file:
                return file.read(self._offsets["train/images"]), length
        except RuntimeError as error:  # HDF5's, for what is an OSError at another time
            raise OSError(errno.EIO, " ".join(str(error).split()), str(self.path)) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _datasets(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each dataset of numbers, by name, the images last."""
        square = self.size, self.size, 3
        found: Any = {"mean_image": (square, "<f4"), "colour/covariance": ((3, 3), "<f8")}
        found |= {"colour/eigenvalues": ((3,), "<f8"), "colour/eigenvectors": ((3, 3), "<f8")}
        for split in SPLITS:
            found |= {f"{split}/count": ((), "<i8"), f"{split}/images_sha256": ((32,), "u1")}
            found[f"{split}/labels"] = (self.rows[split],), "<i8"
        return found | {f"{split}/images": ((self.rows[split], *square), "u1") for split in SPLITS}
