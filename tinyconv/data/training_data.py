"""What a training run learns from: two sets of photos, and how batches are made of them."""

from dataclasses import dataclass
from typing import Any

from tinyconv.data.augment import Augment
from tinyconv.data.loader import Loader


@dataclass
class TrainingData:
    """Photos to learn from and to validate on, and what makes batches of them.

    train, val: a PhotoSet, in memory or of a store; batch_size: of the whole step; seed: of the
    order. rank, ranks: the place of this process among those that share each batch. ValueError if
    a batch, or the photos, cannot be divided among them.
    """

    train: Any
    val: Any
    augment: Augment
    batch_size: int = 128
    seed: int = 0
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        batch, ranks = self.batch_size, self.ranks
        if batch % ranks:
            near = batch // ranks * ranks or ranks
            raise ValueError(
                f"a batch of {batch} cannot be divided among {ranks} processes: use "
                f"--batch-size {near} or {near + ranks}"
            )
        if len(self.train) < ranks:
            count = len(self.train)
            raise ValueError(f"{count} training photos cannot be divided among {ranks} processes")

    def loader(self, device: Any) -> Loader:
        """Reads the training set's batches to `device`."""
        place = {"rank": self.rank, "ranks": self.ranks}
        return Loader(self.train, self.batch_size, device, seed=self.seed, **place)
