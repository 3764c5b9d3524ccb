"""What was asked the database for a moment ago, and is not asked for again."""

import time
from typing import Final, Generic, TypeVar

T = TypeVar("T")
SECONDS: Final = 1.0  # for which it is taken to be so still, whatever another daemon has done meanwhile
MOST: Final = 10_000


class Recent(Generic[T]):
    """Values by their names, each for a second."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, T]] = {}
        self.cleared = 0  # times

    def get(self, name: str) -> T | None:
        """The value, if it is not too old."""
        kept = self._kept.get(name)
        return kept[1] if kept is not None and time.monotonic() < kept[0] else None

    def keep(self, name: str, value: T, asked: int | None = None) -> None:
        """Have it for a second; unless all was cleared since it was asked for, when `cleared` was this."""
        if asked is not None and asked != self.cleared:
            return
        if len(self._kept) >= MOST:
            self._kept.clear()
        self._kept[name] = time.monotonic() + SECONDS, value

    def clear(self) -> None:
        """Ask for everything again."""
        self.cleared += 1
        self._kept.clear()
