"""How a source of photos is to be read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from tinyconv.data.listing import SourceError
from tinyconv.data.store_format import SPLITS


@dataclass
class Options:
    """Which of the photos are taken, and how they get their labels and splits.

    labels: a file with labels for photos without class folders; None: searched beside them.
    labels_from: the number of the first class in it, 0 or 1, where labels are numbers. For a source
    without validation photos, val_share: of all photos, between 0 and 1, or halves: half of each
    class; seed: of their choice. splits: those that are needed; others are not listed.
    """

    labels: str | os.PathLike[str] | None = None
    labels_from: int = 0
    val_share: float | None = None
    halves: bool = False
    seed: int = 0
    splits: tuple[str, ...] = SPLITS

    def drawing(self) -> str:
        """The option that draws validation photos, as it is typed, or ""."""
        return "--split half" if self.halves else "--val-share" if self.val_share else ""

    def choices(self) -> dict[str, Any]:
        """What decided which photos are for validation, to be recorded."""
        if self.halves:
            return {"split": "half", "seed": self.seed}
        return {"val_share": self.val_share, "seed": self.seed} if self.val_share else {}

    def check(self) -> None:
        """SourceError for values that cannot be used with any source."""
        if self.val_share is not None and not 0 < self.val_share < 1:
            share = self.val_share
            raise SourceError(f"--val-share must be between 0 and 1, such as 0.2, not {share}")
        if self.halves and self.val_share:
            raise SourceError("--val-share and --split half exclude each other: give one of them")
        if not 0 <= self.seed < 2**64:
            raise SourceError(f"seed {self.seed}: must be from 0 to 2**64 - 1")
