"""Keeps the daemon alive in the eyes of the others, and the database in shape: heartbeat, clock, retention."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol

import structlog

from webhookd.engine.clock import Clock
from webhookd.errors import Moved, StoreForbidden, StoreUnavailable, WebhookdError
from webhookd.policy.members import Member
from webhookd.tasks import Setbacks, is_worth_a_line, wait_for

BEAT_SECONDS = 5.0
SETTLE_BEATS = 0.2  # that a daemon has to live beside others before it counts: one that dies at once never does
DEAD_AFTER_BEATS = 3  # a daemon that missed so many is dead to the others
SILENT_AFTER_BEATS = 2  # one that could not beat for so long starts no attempts
AGAIN = 0.2  # of the time between two beats, after which one that failed is tried again
EARLY = 0.2  # the same, after which one that has news to tell comes early
SILENT = "no heartbeat has reached the database for some seconds"
TIDY_SECONDS = 3600.0
TIDY_ON = 0.5  # seconds between two pieces of the work
TIDY_AGAIN = 60.0  # when a lock was in the way: each try may hold up INSERTs for the 50 ms that it waits
ALARM = 0.8  # of the time for which events are kept
SKEW_WARNING = 2.0  # receivers reject timestamps that are off by minutes; two seconds say that something drifts

log = structlog.get_logger("webhookd.janitor")


def since_boot() -> float:
    """Seconds, also of those in which the machine slept, where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Beat(Protocol):
    """What a heartbeat learns."""

    @property
    def now(self) -> float: ...
    @property
    def known(self) -> bool: ...
    @property
    def members(self) -> Sequence[Member]: ...
    @property
    def downtimes(self) -> tuple[tuple[float, float], ...]: ...


class Registry(Protocol):
    """What the janitor needs of the store."""

    async def beat(
        self, daemon: int, low: int, dead_after: float, listen_pid: int | None = None, problem: str | None = None
    ) -> Beat:
        """Say that we are alive, and what keeps us from our work."""

    async def hindered(self, daemon: int, problem: str) -> None:
        """Say what keeps us from our work where a heartbeat cannot."""

    async def silence(self, daemon: int, dead_after: float) -> int:
        """End what dead daemons listen on; how many there were."""

    async def low(self, low: int) -> int:
        """The last batch before which everything is done."""

    async def maintain(self, events: float, attempts: float) -> list[tuple[str, str | None]]:
        """A piece of the work on partitions: what was done, or could not be and why."""

    async def sweep(self, events: float) -> int:
        """Old rows go; how many went."""

    async def lagging(self, seconds: float) -> dict[int, float]:
        """Endpoints whose cursor is that far behind, and how far."""


class Retention(Protocol):
    """What can be told to the janitor, also while it runs: `[retention]` of the configuration."""

    @property
    def events(self) -> float: ...
    @property
    def attempts(self) -> float: ...
    @property
    def manage_partitions(self) -> bool: ...


class Janitor:
    """Beats until stopped. `on_beat(beat, low, steady)` and `on_silence()` tell the daemon what follows."""

    def __init__(
        self,
        registry: Registry,
        daemon: int,
        low: int,
        clock: Clock,
        retention: Retention,
        *,
        on_beat: Callable[[Beat, int, bool], None],
        on_silence: Callable[[], None],
        listen_pid: Callable[[], int | None] = lambda: None,
        problem: Callable[[], str] = lambda: "",
        beat_seconds: float = BEAT_SECONDS,
        since_boot: Callable[[], float] = since_boot,
    ) -> None:
        self._store = registry
        self._daemon = daemon
        self._low = low
        self._clock = clock
        self._retention = retention
        self._on_beat = on_beat
        self._on_silence = on_silence
        self._listen_pid = listen_pid
        self._problem = problem
        self._beat_seconds = beat_seconds
        self._stopped = asyncio.Event()
        self._unbroken_since: float | None = None
        self._last_beat = time.monotonic()
        self._silence: asyncio.TimerHandle | None = None  # falls when we have not been heard for too long
        self.beating = Setbacks("heartbeat")
        self.minding = Setbacks("look at the others")  # what comes with a heartbeat and does not make it
        self._since_boot = since_boot
        self._awake_at = since_boot()
        self._minded = True
        self._shown: tuple[str, int | None] = "", None  # our problem and who listens for us, as our row has them
        self._beats_askew = 0  # in a row
        self.setbacks = Setbacks("janitor", TIDY_ON, TIDY_AGAIN)
        self._told: set[tuple[str, str | None]] = set()  # problems that the log has already

    @property
    def dead_after(self) -> float:
        """Seconds of silence after which a daemon is dead to the others."""
        return self._beat_seconds * DEAD_AFTER_BEATS

    def configure(self, retention: Retention) -> None:
        """Keep what there is for so long from now on."""
        self._retention = retention

    def stop(self) -> None:
        """Beat no more."""
        self._stopped.set()

    async def run(self) -> None:
        """Beat until stopped, and see to the tables meanwhile."""
        self._heard(self._last_beat)
        try:
            async with asyncio.TaskGroup() as tasks:
                tidying = tasks.create_task(self._tidy())
                await self._beats()
                tidying.cancel()
        finally:
            if self._silence is not None:
                self._silence.cancel()

    async def _beats(self) -> None:
        while True:
            pause = self._beat_seconds
            self._was_frozen()
            try:
                async with asyncio.timeout(self._beat_seconds):  # a silent database must not keep us from noticing
                    await self._beat()
                self.beating.over()
            except Exception as error:
                await self._missed(error)
                pause *= AGAIN  # a connection that was ended must not cost a third of what we have to live
            if await self._rest(pause):
                return

    async def _rest(self, seconds: float) -> bool:
        """Until the next beat is due, or a little if our row does not say how we are; True when there is to be none."""
        due = time.monotonic() + seconds
        while True:
            left, step = due - time.monotonic(), self._beat_seconds * EARLY
            if await wait_for(self._stopped, min(max(left, 0.0), step)):
                return True
            if left <= step or self._was_frozen() or (self._problem(), self._listen_pid()) != self._shown:
                return False

    def _was_frozen(self) -> bool:
        """Whether we have stood still for so long that the others have taken us for dead; then nothing more is started.

        What happened meanwhile nobody here has seen: of a machine that sleeps, other clocks than this do not tell.
        """
        before, self._awake_at = self._awake_at, self._since_boot()
        seconds = self._awake_at - before
        if seconds <= self.dead_after:
            return False
        log.warning("was_frozen", seconds=round(seconds, 1))
        self._fall_silent()
        return True

    async def _missed(self, error: Exception) -> None:
        if isinstance(error, TimeoutError):
            error = StoreUnavailable(f"the database did not answer within {self._beat_seconds:g} s")
        self.beating.met(error)
        silent = time.monotonic() - self._last_beat
        log.debug("beat_missed", seconds=round(silent, 1), reason=str(error))
        if isinstance(error, StoreUnavailable) and not isinstance(error, StoreForbidden):
            return
        # The others will take us for dead, so let our row say why we are not.
        with suppress(WebhookdError, TimeoutError):
            async with asyncio.timeout(self._beat_seconds):
                await self._store.hindered(self._daemon, self._problem())

    async def _beat(self) -> None:
        self._minded = True
        await self._mind(self._look_for_low)
        asked = time.monotonic()
        problem, listen_pid = self._problem(), self._listen_pid()
        beat = await self._store.beat(self._daemon, self._low, self.dead_after, listen_pid, problem or None)
        self._shown = problem, listen_pid
        answered = time.monotonic()
        if not beat.known:
            raise Moved("the database does not know this daemon any longer: it was restored")
        self._clock.measure(beat.now, asked, answered)
        self._beats_askew = self._beats_askew + 1 if abs(self._clock.skew) > SKEW_WARNING else 0
        if self._beats_askew and is_worth_a_line(self._beats_askew):
            log.warning("clock_differs", seconds=round(self._clock.skew, 1))
        if self._unbroken_since is None or asked - self._last_beat > self._beat_seconds * SILENT_AFTER_BEATS:
            self._unbroken_since = asked
        self._last_beat = answered
        self._heard(asked)
        steady = asked - self._unbroken_since >= self.dead_after
        self._on_beat(beat, self._low, steady)
        if steady:
            await self._mind(self._silence_the_dead)
        if self._minded:
            self.minding.over()

    async def _mind(self, look: Callable[[], Awaitable[None]]) -> None:
        """Do what may wait for the next beat: a right that it lacks is no reason to count as dead."""
        try:
            await look()
        except StoreForbidden as error:
            self.minding.met(error)
            self._minded = False

    async def _look_for_low(self) -> None:
        self._low = await self._store.low(self._low)

    async def _silence_the_dead(self) -> None:
        if silenced := await self._store.silence(self._daemon, self.dead_after):
            log.warning("dead_listener_ended", daemons=silenced)

    async def _tidy(self) -> None:
        while True:
            try:
                pause = await self._piece()
            except Exception as error:
                pause = self.setbacks.met(error)
            else:
                self.setbacks.over()
            await asyncio.sleep(pause)

    async def _piece(self) -> float:
        """Do a piece of the work on the tables; the seconds until the next one."""
        keep = self._retention
        if keep.manage_partitions:
            pieces = await self._store.maintain(keep.events, keep.attempts)
            problems = {piece for piece in pieces if piece[1] is not None}
            for done, problem in sorted(problems - self._told):
                log.warning("not_maintained", what=done, reason=problem)
            self._told = problems
            if ended := [done for done, problem in pieces if problem is None]:
                log.info("maintained", done=ended)
                return TIDY_ON
            if any("open" in problem or "in use" in problem for _, problem in problems if problem):
                return TIDY_AGAIN
        if await self._store.sweep(keep.events):
            return TIDY_ON
        for endpoint_id, seconds in (await self._store.lagging(ALARM * keep.events)).items():
            log.warning("cursor_lags", endpoint_id=endpoint_id, seconds=round(seconds), kept=keep.events)
        return TIDY_SECONDS

    def _heard(self, at: float) -> None:
        """Fall silent so long after it, not only when a beat is missed: what is sent then may be others' already."""
        if self._silence is not None:
            self._silence.cancel()
        left = at + self._beat_seconds * SILENT_AFTER_BEATS - time.monotonic()
        self._silence = asyncio.get_running_loop().call_later(left, self._fall_silent)

    def _fall_silent(self) -> None:
        self._unbroken_since = None
        self._on_silence()
