"""Says in the log that deliveries were given up: at once of the first, then every five minutes of all there were."""

import asyncio
from typing import Literal

import structlog

BETWEEN_SECONDS = 300.0  # so that a flood of them is a line now and then

log = structlog.get_logger("webhookd.given_up")


class GivenUp:
    """Counts what ends without success, and tells of it on the loop: how many for how many, and the first by name."""

    def __init__(self, between_seconds: float = BETWEEN_SECONDS) -> None:
        self._between = between_seconds
        self._alarm: asyncio.Handle | None = None
        self._clear()

    def _clear(self) -> None:
        self._counts = {"exhausted": 0, "rejected": 0}
        self._endpoints: dict[str, set[str]] = {"exhausted": set(), "rejected": set()}
        self._first: dict[str, tuple[str, str | None, str]] = {}

    def add(
        self, state: Literal["exhausted", "rejected"], endpoint: str, event_id: str | None, why: str, count: int = 1
    ) -> None:
        """Count so many; `why` is the code of the last attempt, or the reason why there was none."""
        self._counts[state] += count
        self._endpoints[state].add(endpoint)
        self._first.setdefault(state, (endpoint, event_id, why))
        if self._alarm is None:  # what ends at the same moment is told together
            self._alarm = asyncio.get_running_loop().call_soon(self._tell)

    def close(self) -> None:
        """Tell what is left."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._tell_all()

    def _tell(self) -> None:
        self._alarm = asyncio.get_running_loop().call_later(self._between, self._tell) if self._first else None
        self._tell_all()

    def _tell_all(self) -> None:
        for state, (endpoint, event_id, why) in self._first.items():
            log.warning(
                "deliveries_exhausted" if state == "exhausted" else "deliveries_rejected",
                deliveries=self._counts[state],
                endpoints=len(self._endpoints[state]),
                endpoint=endpoint,
                event_id=event_id,
                code=why,
            )
        self._clear()
