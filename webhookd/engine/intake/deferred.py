"""Batches that could not be read: they let all others pass, and are tried again now and then."""

from collections.abc import Iterator
from typing import Final

import structlog

from webhookd.model import Batch
from webhookd.tasks import Setbacks

DEFER_FIRST, DEFER_MOST = 0.1, 60.0  # seconds for which a batch that could not be read lets others pass
FOREVER: Final = float("inf")

log = structlog.get_logger("webhookd.reader")


class Hindered:
    """A batch that could not be read, and why; it is tried again when it is due."""

    __slots__ = ("batch", "due", "setbacks")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.setbacks = Setbacks(f"reading of batch {batch.id}", DEFER_FIRST, DEFER_MOST)
        self.due = 0.0  # monotonic


class Deferred:
    """Those that wait behind the others."""

    def __init__(self) -> None:
        self._hindered: dict[int, Hindered] = {}

    @property
    def problem(self) -> str:
        """Which batch cannot be read, and why: of several, the first."""
        for hindered in self._hindered.values():
            batch = hindered.batch
            return f"batch {batch.id} cannot be read, {len(batch.event_ids)} events: {hindered.setbacks.problem}"
        return ""

    @property
    def events(self) -> int:
        """How many events are in these."""
        return sum(len(hindered.batch.event_ids) for hindered in self._hindered.values())

    def put(self, batch: Batch, error: Exception, now: float) -> None:
        """Let all others pass for a while, longer each time."""
        hindered = self._hindered.setdefault(batch.id, Hindered(batch))
        pause = hindered.setbacks.met(error)
        log.warning(
            "batch_waits",
            batch=batch.id,
            events=len(batch.event_ids),
            seconds=round(pause, 1),
            reason=hindered.setbacks.problem,
        )
        hindered.due = now + pause

    def due(self, now: float) -> Iterator[Batch]:
        """Those that have their turn now; each may be put behind again."""
        for hindered in self._hindered.values():
            if hindered.due <= now:
                hindered.due = FOREVER
                yield hindered.batch

    def forget(self, batch: Batch) -> None:
        """It has been read."""
        if hindered := self._hindered.pop(batch.id, None):
            hindered.setbacks.over()
