"""The progress bar of tqdm; without tqdm, an object of its interface that draws nothing.

A machine with a GPU often has no network, and training does not need a bar.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm
else:
    try:
        from tqdm import tqdm
    except ImportError:

        class tqdm:
            """The part of tqdm's interface that this project uses."""

            disable = True

            def __init__(self, iterable: Iterable[Any] = (), **settings: Any) -> None:
                self._iterable = iterable

            def __iter__(self) -> Iterator[Any]:
                return iter(self._iterable)

            def __enter__(self) -> tqdm:
                return self

            def __exit__(self, *_: object) -> None:
                self.close()

            def update(self, count: float = 1) -> None:
                """Nothing is counted."""

            def set_postfix(self, **values: Any) -> None:
                """Nothing is shown."""

            def close(self) -> None:
                """Nothing is open."""

            @staticmethod
            def set_lock(lock: Any) -> None:
                """Nothing is locked."""

            @staticmethod
            def write(text: str, file: Any = None) -> None:
                """Print the text; no bar has to be moved out of its way."""
                print(text, file=file)


__all__ = ["tqdm"]
