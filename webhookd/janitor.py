"""Keeps the daemon alive in the eyes of the others, and the database tidy: heartbeat, clock, partitions ahead."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from webhookd.clock import Clock
from webhookd.errors import Moved, SchemaMismatch, StoreUnavailable
from webhookd.tasks import wait_for

BEAT_SECONDS = 5.0
DEAD_AFTER_BEATS = 3  # a daemon that missed so many is dead to the others
SILENT_AFTER_BEATS = 2  # one that could not beat for so long starts no attempts
TIDY_SECONDS = 3600.0
DAYS_AHEAD = 30
SKEW_WARNING = 2.0  # receivers reject timestamps that are off by minutes; two seconds say that something drifts

log = structlog.get_logger("webhookd.janitor")


class Beat(Protocol):
    """What a heartbeat learns."""

    @property
    def now(self) -> float: ...
    @property
    def known(self) -> bool: ...
    @property
    def live(self) -> int: ...
    @property
    def downtimes(self) -> tuple[tuple[float, float], ...]: ...


class Registry(Protocol):
    """What the janitor needs of the store."""

    async def beat(self, daemon: int, low: int, dead_after: float, listen_pid: int | None = None) -> Beat:
        """Say that we are alive."""

    async def silence(self, daemon: int, dead_after: float) -> int:
        """End what dead daemons listen on; how many there were."""

    async def low(self, low: int) -> int:
        """The last batch before which everything is done."""

    async def tidy(self, days_ahead: int) -> None:
        """Partitions ahead."""


class Janitor:
    """Beats until stopped. `on_beat(beat, low, steady)` and `on_silence()` tell the daemon what follows."""

    def __init__(
        self,
        registry: Registry,
        daemon: int,
        low: int,
        clock: Clock,
        *,
        on_beat: Callable[[Beat, int, bool], None],
        on_silence: Callable[[], None],
        listen_pid: Callable[[], int | None] = lambda: None,
        beat_seconds: float = BEAT_SECONDS,
    ) -> None:
        self._store = registry
        self._daemon = daemon
        self._low = low
        self._clock = clock
        self._on_beat = on_beat
        self._on_silence = on_silence
        self._listen_pid = listen_pid
        self._beat_seconds = beat_seconds
        self._stopped = asyncio.Event()
        self._unbroken_since: float | None = None
        self._last_beat = time.monotonic()
        self._next_tidy = 0.0

    @property
    def dead_after(self) -> float:
        """Seconds of silence after which a daemon is dead to the others."""
        return self._beat_seconds * DEAD_AFTER_BEATS

    def stop(self) -> None:
        """Beat no more."""
        self._stopped.set()

    async def run(self) -> None:
        """Beat until stopped."""
        while True:
            try:
                async with asyncio.timeout(self._beat_seconds):  # a silent database must not keep us from noticing
                    await self._beat()
                await self._tidy()
            except (StoreUnavailable, SchemaMismatch, TimeoutError) as error:
                self._missed(str(error))
            if await wait_for(self._stopped, self._beat_seconds):
                return

    async def _beat(self) -> None:
        self._low = await self._store.low(self._low)
        asked = time.monotonic()
        beat = await self._store.beat(self._daemon, self._low, self.dead_after, self._listen_pid())
        answered = time.monotonic()
        if not beat.known:
            raise Moved("the database does not know this daemon any longer: it was restored")
        self._clock.set(beat.now, (asked + answered) / 2)
        if abs(self._clock.skew) > SKEW_WARNING:
            log.warning("clock_differs", seconds=round(self._clock.skew, 1))
        if self._unbroken_since is None or asked - self._last_beat > self._beat_seconds * SILENT_AFTER_BEATS:
            self._unbroken_since = asked
        self._last_beat = answered
        steady = asked - self._unbroken_since >= self.dead_after
        self._on_beat(beat, self._low, steady)
        if steady and (silenced := await self._store.silence(self._daemon, self.dead_after)):
            log.warning("dead_listener_ended", daemons=silenced)

    async def _tidy(self) -> None:
        if time.monotonic() >= self._next_tidy:
            self._next_tidy = time.monotonic() + TIDY_SECONDS
            await self._store.tidy(DAYS_AHEAD)

    def _missed(self, problem: str) -> None:
        silent = time.monotonic() - self._last_beat
        log.debug("beat_missed", seconds=round(silent, 1), reason=problem)
        if silent > self._beat_seconds * SILENT_AFTER_BEATS:
            self._unbroken_since = None
            self._on_silence()
