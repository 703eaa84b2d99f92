"""When to lower the learning rate (paper §5: divided by 10 when validation stops improving).

    rate(epoch) = first rate · factor ^ (drops so far)

A schedule is asked for its number of drops before every epoch and told the validation error after
it. What it remembers is a few numbers (`state`), which a checkpoint keeps, so that a resumed run
drops where the uninterrupted one did.
"""

from collections.abc import Mapping, Sequence
from typing import Any


class Schedule:
    """The learning rate stays as it is; base of the others.

    Attributes: `factor`, of each drop; `total`, how many drops there are in all (the authors' last
    stage begins after the last one).
    """

    name = "constant"
    factor = 0.1
    total = 0

    def drops(self, epoch: int) -> int:
        """How many times the rate has been lowered when epoch `epoch` (from 1) begins."""
        return 0

    def scale(self, epoch: int) -> float:
        """What to multiply the first learning rate by in epoch `epoch`."""
        return self.factor ** self.drops(epoch)

    def last_stage(self, epoch: int) -> bool:
        """True after the last drop; False as long as one is to come, and if there is none."""
        return 0 < self.total == self.drops(epoch)

    def update(self, error: float) -> None:
        """Tell it the validation error (0 to 1) of the epoch that has just ended."""

    def describe(self) -> dict[str, Any]:
        """Its name and settings: runs with equal descriptions drop by the same rule."""
        return {"name": self.name}

    @property
    def state(self) -> dict[str, Any]:
        """What it remembers, for a checkpoint."""
        return {}

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        pass


class Steps(Schedule):
    """Divide by 10 before each of the named epochs (the 2010 run's: 23, 51, 78).

    epochs: rising numbers from 1; ValueError otherwise.
    """

    name = "steps"

    def __init__(self, epochs: Sequence[int]) -> None:
        self.epochs = [int(epoch) for epoch in epochs]
        if any(a >= b for a, b in zip([0, *self.epochs], self.epochs, strict=False)):
            raise ValueError(f"Steps: epochs must be rising numbers from 1, not {self.epochs}")
        self.total = len(self.epochs)

    def drops(self, epoch: int) -> int:
        """How many of the named epochs have come."""
        return sum(epoch >= drop for drop in self.epochs)

    def describe(self) -> dict[str, Any]:
        """The epochs."""
        return {"name": self.name, "epochs": self.epochs}


class Plateau(Schedule):
    """The paper's rule, made automatic: divide by 10 when the validation error stops improving.

    "Stops" means: `patience` epochs in a row without a new lowest error. `total` drops in all (the
    paper: three); after that the rate stays. ValueError for numbers below 1.
    """

    name = "plateau"

    def __init__(self, patience: int = 5, total: int = 3) -> None:
        if patience < 1 or total < 1:
            raise ValueError(
                f"Plateau: patience and total must be at least 1, not {patience} and {total}"
            )
        self.patience, self.total = patience, total
        self.done, self.stale, self.best = 0, 0, 2.0

    def drops(self, epoch: int) -> int:
        """How many times it has dropped: the past decides, not the number of the epoch."""
        return self.done

    def update(self, error: float) -> None:
        """A new lowest error starts the count of epochs again, and so does a drop."""
        self.stale += 1
        if error < self.best:
            self.best, self.stale = error, 0
        if self.stale >= self.patience and self.done < self.total:
            self.done, self.stale = self.done + 1, 0

    def describe(self) -> dict[str, Any]:
        """Patience and number of drops."""
        return {"name": self.name, "patience": self.patience, "total": self.total}

    @property
    def state(self) -> dict[str, Any]:
        """Drops so far, epochs since the lowest error, that error."""
        return {"done": self.done, "stale": self.stale, "best": self.best}

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        self.done, self.stale = int(state["done"]), int(state["stale"])
        self.best = float(state["best"])
