"""When to lower the learning rate (paper §5: divided by 10 when validation stops improving).

    rate(epoch) = first rate · factor ^ (drops so far)

Training calls `scale` before every epoch and `update` with the validation error after it. A
checkpoint saves `state`, so that a resumed run lowers the rate in the same epochs.
"""

from collections.abc import Mapping, Sequence
from typing import Any


class Schedule:
    """A constant learning rate; base class of the others.

    Attributes: `factor` of each drop; `total` number of drops (the authors' last stage begins after
    the last one).
    """

    name = "constant"
    factor = 0.1
    total = 0

    def drops(self, epoch: int) -> int:
        """How many times the rate has been lowered when epoch `epoch` (from 1) begins."""
        return 0

    def scale(self, epoch: int) -> float:
        """The factor of the initial learning rate in epoch `epoch`."""
        return self.factor ** self.drops(epoch)

    def last_stage(self, epoch: int) -> bool:
        """True after the last drop; False before it, and for a schedule without drops."""
        return 0 < self.total == self.drops(epoch)

    def update(self, error: float) -> None:
        """Record the validation error (0 to 1) of the epoch that has just ended."""

    def describe(self) -> dict[str, Any]:
        """Name and settings: runs with equal descriptions follow the same rule."""
        return {"name": self.name}

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint saves."""
        return {}

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        pass


class Steps(Schedule):
    """Divide by 10 before each of the given epochs (those of the 2010 run: 23, 51, 78).

    epochs: increasing numbers from 1; ValueError otherwise.
    """

    name = "steps"

    def __init__(self, epochs: Sequence[int]) -> None:
        self.epochs = [int(epoch) for epoch in epochs]
        if any(a >= b for a, b in zip([0, *self.epochs], self.epochs, strict=False)):
            raise ValueError(f"Steps: epochs must be increasing numbers from 1, not {self.epochs}")
        self.total = len(self.epochs)

    def drops(self, epoch: int) -> int:
        """How many of the given epochs have begun."""
        return sum(epoch >= drop for drop in self.epochs)

    def describe(self) -> dict[str, Any]:
        """The epochs."""
        return {"name": self.name, "epochs": self.epochs}


class Plateau(Schedule):
    """Divide by 10 when the validation error stops improving, which the paper did by hand.

    That is, after `patience` successive epochs without a new lowest error, at most `total` times
    (three in the paper). ValueError for numbers below 1.
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
        """The number of drops so far; it depends on past errors, not on `epoch`."""
        return self.done

    def update(self, error: float) -> None:
        """Count an epoch; a new lowest error or a drop resets the count."""
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
        """Drops so far, epochs since the lowest error, the lowest error."""
        return {"done": self.done, "stale": self.stale, "best": self.best}

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        self.done, self.stale = int(state["done"]), int(state["stale"])
        self.best = float(state["best"])
