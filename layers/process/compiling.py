"""Host loops are compiled at their first call and cached; without a cache, in memory.

Numba caches each loop beside its source, else in the user's cache folder, and raises an error where
it can write neither (a container, another user's installation). `NUMBA_CACHE_DIR` names another
folder. Compiling those of a first run takes 8 seconds: one line says so, or it would seem to hang.
Loops of other packages are cached and compiled as ever.
"""

import sys
from collections.abc import Callable
from typing import Any

from numba.core import dispatcher, event
from numba.core.caching import FunctionCache, NullCache

COMPILATION = "numba:compile"  # not sent for what is found in the cache
PACKAGES = ("layers.", "tinyconv.")
LINE = "compiling the host loops (once; cached)..."
IN_MEMORY = (
    "compiling the host loops (for this process only: no folder can be written for Numba's cache; "
    "NUMBA_CACHE_DIR names one)..."
)


class _Announcement(event.Listener):
    """Writes a line when the first of our loops is compiled, and one at the cache's first error."""

    line = LINE
    said = said_failed = False

    def failed(self, why: str) -> None:
        if not self.said_failed:
            self.said_failed = True
            print(f"Numba's cache in {why}", file=sys.stderr, flush=True)

    def on_start(self, event: Any) -> None:
        if not self.said and _ours(getattr(event.data["dispatcher"], "py_func", None)):
            self.said = True
            print(self.line, file=sys.stderr, flush=True)

    def on_end(self, event: Any) -> None:
        pass


announcement = _Announcement()


class _LenientCache(FunctionCache):
    """A cache whose files may be unreadable, damaged, or on a full disk: then it is not used."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        return self._attempt(super().load_overload, sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        self._attempt(super().save_overload, sig, data)

    def _attempt(self, use: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return use(*arguments)
        except Exception as error:
            announcement.failed(f"{self.cache_path} is not used: {type(error).__name__}: {error}")
            return None


def _ours(function: Any) -> bool:
    return (getattr(function, "__module__", None) or "").startswith(PACKAGES)


def _cache(function: Any) -> Any:
    """The cache of a function that `njit(cache=True)` decorates."""
    if not _ours(function):
        return FunctionCache(function)
    try:
        return _LenientCache(function)
    except RuntimeError:  # no locator available
        announcement.line = IN_MEMORY
        return NullCache()


# Numba has no setting for this: NUMBA_CACHE_LOCATOR_CLASSES names folders only.
dispatcher.FunctionCache = _cache  # type: ignore[attr-defined]
event.register(COMPILATION, announcement)
