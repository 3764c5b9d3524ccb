"""The composition root: builds the parts, runs them in one TaskGroup, and stops them in an order that loses nothing.

reader ───┐                              to stop: reader, retrier and follower claim no more; the dispatcher finishes
retrier ──┼─▶ dispatcher ─▶ recorder     what is in flight; the recorder writes it; what was never sent is given back
follower ─┘   janitor
"""

import asyncio
import random
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import structlog

from webhookd import __version__
from webhookd.config.config import Config
from webhookd.daemon import reloader
from webhookd.daemon.notify import Notifier
from webhookd.daemon.processes import ourselves, see
from webhookd.daemon.watcher import watch
from webhookd.egress.oauth import Tokens
from webhookd.egress.sender import Sender
from webhookd.engine import janitor, neighbours, recorder, retrier
from webhookd.engine.clock import Clock
from webhookd.engine.dispatch import dispatcher
from webhookd.engine.intake import reader
from webhookd.engine.parked import follower
from webhookd.engine.parked.log_pages import LogPages
from webhookd.errors import ConfigError, Moved, StoreRefused, StoreUnavailable
from webhookd.model import Endpoint
from webhookd.policy.backoff import over_before
from webhookd.policy.difference import ACCEPT
from webhookd.policy.matching import Matcher
from webhookd.policy.members import Member, shares
from webhookd.policy.parking import Parking
from webhookd.store.backlog import Backlog
from webhookd.store.batches import Batches
from webhookd.store.database import Database
from webhookd.store.dial import Dsn
from webhookd.store.lock_holders import LockHolders
from webhookd.store.migrations import check_schema
from webhookd.store.parking import ParkingStore
from webhookd.store.registry import Beat, Joined, Known, Registry
from webhookd.store.results import Results
from webhookd.store.wakeup import WakeUp
from webhookd.tasks import Setbacks, cancelled_by, first_of, is_worth_a_line

DRAIN_SECONDS = 8.0  # for writing the last results, beyond the attempts in flight: systemd waits for 30 in all
CLAIM_SECONDS = 2.0  # for a claim that is under way; one that is lost is adopted or runs out
AWAY_FIRST, AWAY_MOST = 0.1, 5.0
MOST_OF_A_PROBLEM = 500  # characters

log = structlog.get_logger("webhookd.daemon")


@dataclass(frozen=True, slots=True)
class Pace:
    """How often things happen, in seconds; tests run the same daemon at a tenth of it."""

    beat: float = janitor.BEAT_SECONDS
    rescue: float = reader.RESCUE_SECONDS
    look: float = retrier.LOOK_SECONDS
    flush: float = recorder.FLUSH_SECONDS
    patience: float = dispatcher.PATIENCE
    neighbours: float = neighbours.LOOK_SECONDS


NORMAL = Pace()
SILENT = Notifier()


class _Joined(NamedTuple):
    """What a daemon knows when the others know it."""

    daemon_id: int
    low: int
    beat: Beat
    endpoints: Known
    parking: Parking
    clock: Clock


class Daemon:
    """One webhookd process. `run` returns when `stop` was called and everything in flight is recorded.

    `load` reads the configuration again, and `watch` are the directories whose edits make it do so. `accept` is the
    command by which an operator accepts whatever removals a reload is refused for.
    """

    def __init__(
        self,
        config: Config,
        dsn: Dsn,
        direct_dsn: Dsn = None,
        *,
        load: Callable[[], Config] | None = None,
        watch: Sequence[Path] = (),
        accept: str = ACCEPT,
        notifier: Notifier = SILENT,
        pace: Pace = NORMAL,
        on_ready: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._config = config
        self._dsn = dsn
        self._direct_dsn = direct_dsn or dsn
        self._load = load or (lambda: config)
        self._watch = watch
        self._accept = accept
        self._notifier = notifier
        self._pace = pace
        self._on_ready = on_ready
        self._dead_after = pace.beat * janitor.DEAD_AFTER_BEATS
        self._stopped = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._refused = ""  # why the files were not taken, over all lives
        self._user_agent = f"webhookd/{__version__}"

    def stop(self) -> None:
        """Claim nothing more, finish what is in flight, write it down, and return from run."""
        self._stopped.set()

    def reload(self) -> None:
        """Read the configuration again, soon; what is refused leaves the old one."""
        self._reload_wanted.set()

    async def run(self) -> None:
        """Deliver until stopped; wait for a database that is away.

        SchemaMismatch when this binary can never use the database, OtherPlace when it may not.
        """
        # Around everything, also a database that is away and a slow stop. A TaskGroup would wrap what this raises.
        watchdog = asyncio.create_task(self._notifier.watchdog())
        try:
            while await self._moved() and not self._stopped.is_set():
                pass
        finally:
            watchdog.cancel()

    async def _moved(self) -> bool:
        """Live; True when the database has moved, so that all in memory was dropped and a new life has to begin."""
        moved = False
        try:
            await self._live()
        except* Moved as reasons:
            log.error("database_moved", reason=str(first_of(reasons)))
            moved = True
        return moved

    async def _live(self) -> None:
        async with (
            Database(self._dsn) as database,
            LockHolders(self._dsn) as lock_holders,  # from here on, since who joins may have to wait for a lock, too
            WakeUp(self._direct_dsn) as wakeup,
            Sender(self._config.egress, self._user_agent) as sender,
        ):
            registry = Registry(database)
            joined = await cancelled_by(self._stopped, self._join(database, registry))
            if joined is None:
                return
            batches = Batches(database)
            unfinished = await self._deliver(joined, database, batches, registry, wakeup, lock_holders, sender)
            await self._leave(joined.daemon_id, batches, ParkingStore(database), registry, unfinished)

    async def _join(self, database: Database, registry: Registry) -> _Joined:
        """Become a daemon in the eyes of the others, however long the database keeps us waiting.

        They see nothing of one that cannot: its row comes last. The first heartbeat makes it count.
        """
        config, setbacks, told = self._config, Setbacks("start", AWAY_FIRST, AWAY_MOST), ""
        clock = Clock()
        joined: Joined | None = None
        while True:
            try:
                if joined is None:
                    await self._bind(database, registry)
                    around = self._neighbours(registry)
                    await around.ask()
                    await around.bury()  # what a predecessor had in hand is ours, and nobody waits for it to agree
                    parking = await ParkingStore(database).parking()
                    joined = await registry.join(
                        socket.gethostname(),
                        __version__,
                        config.specs,
                        config.config_hash,
                        self._dead_after,
                        ourselves(),
                    )
                    if joined.has_company:
                        await asyncio.sleep(self._pace.beat * janitor.SETTLE_BEATS)
                asked = time.monotonic()
                beat = await registry.beat(joined.daemon_id, joined.low, self._dead_after)
                clock.measure(beat.now, asked, time.monotonic())
                if not beat.known:
                    joined = None  # it was restored in this very moment
                    continue
            except StoreRefused as error:
                raise ConfigError([f"the database does not take the endpoints of these files: {error}"]) from error
            except Exception as error:
                pause = setbacks.met(error)
                if setbacks.problem != told:
                    log.warning("waiting_for_database", reason=setbacks.problem)
                    self._notifier.ready(f"waiting for the database: {setbacks.problem}")
                told = setbacks.problem
                await asyncio.sleep(pause)
            else:
                setbacks.over()
                log.info("started", daemon=joined.daemon_id, endpoints=len(config.endpoints), version=__version__)
                return _Joined(joined.daemon_id, joined.low, beat, joined.known, parking, clock)

    async def _bind(self, database: Database, registry: Registry) -> None:
        """Know that this is our database, and that it knows no endpoint which files without any would remove."""
        async with database.transaction() as connection:
            await check_schema(connection)
        database.place = await registry.bind(self._config.daemon.environment)
        if self._config.empty and await registry.has_endpoints():
            raise ConfigError([self._config.empty])

    def _status(self, endpoints: int) -> str:
        old = f" on the old configuration: {self._refused.splitlines()[0]}" if self._refused else ""
        return f"delivering to {endpoints} endpoints{old}"

    def _keep_the_old(self, why: str, endpoints: int) -> None:
        self._refused = why
        self._notifier.ready(self._status(endpoints))

    def _neighbours(self, registry: Registry, on_buried: Callable[[], None] = lambda: None) -> neighbours.Neighbours:
        return neighbours.Neighbours(
            registry,
            ourselves(),
            see,
            lambda: max((e.timeout for e in self._config.endpoints), default=0.0) + dispatcher.LEASE_MARGIN,
            on_buried=on_buried,
            look_seconds=self._pace.neighbours,
        )

    async def _deliver(
        self,
        joined: _Joined,
        database: Database,
        batches: Batches,
        registry: Registry,
        wakeup: WakeUp,
        lock_holders: LockHolders,
        sender: Sender,
    ) -> list[int]:
        """Run the parts until stopped; the ids of the batches that were not finished."""
        pace, tokens = self._pace, Tokens(sender)
        daemon_id, low, first_beat, known, parking, clock = joined
        own: dict[int, Endpoint] = {}
        matcher = Matcher(())
        results = recorder.Recorder(Results(database), daemon_id, flush_seconds=pace.flush)
        sending = dispatcher.Dispatcher(
            batches,
            tokens,
            results,
            clock,
            self._config.delivery,
            random=random.random,  # jitter
            user_agent=self._user_agent,
            patience=pace.patience,
        )
        # Known before anything is claimed, or what an outage left would look as if its time were over.
        sending.answers.downtimes = first_beat.downtimes
        backlog = Backlog(database, daemon_id, self._dead_after)
        retrying = retrier.Retrier(backlog, batches, sending, results, own.get, look_seconds=pace.look)
        parking_store = ParkingStore(database)
        pages = LogPages(parking_store, batches)
        following = follower.Follower(
            parking_store,
            pages,
            sending,
            results,
            daemon_id,
            parking,
            own.get,
            lambda endpoint_id: endpoint_id in retrying.due,
            lambda endpoint: over_before(endpoint.retry, clock.now(), sending.answers.downtimes),
            dead_after=self._dead_after,
            look_seconds=pace.look,
        )
        sending.answers.on_trouble = following.trouble
        reading = reader.Reader(
            batches,
            wakeup,
            sending,
            results,
            following,
            daemon_id,
            low,
            dead_after=self._dead_after,
            rescue_seconds=pace.rescue,
        )

        beaten: janitor.Beat = first_beat
        refusals = 0  # heartbeats at which there had been events without a tenant

        def divide(members: Sequence[Member]) -> None:
            following.shares = shares(daemon_id, own, members)
            sending.share(following.shares)

        async def apply(config: Config, ours: Sequence[Endpoint], new: Matcher) -> None:
            # An inactive endpoint is sent nothing: it has no queue, and what it was owed stays in the backlog.
            active = [endpoint for endpoint in ours if endpoint.active]
            for _ in sending.prepare(active):
                await asyncio.sleep(0)
            # From here on all at once, or a cursor would pass over what its endpoint is owed.
            self._config = config  # a new life goes on with it
            sender.configure(config.egress)
            own.clear()
            own.update((endpoint.id, endpoint) for endpoint in active)
            sending.configure(active, config.delivery)
            tokens.keep({endpoint.grant for endpoint in active if endpoint.grant})
            divide(beaten.members)
            nonlocal matcher
            old, matcher = matcher, new
            reading.fanout.endpoints_for = matcher.endpoints_for
            pages.configure(matcher.endpoints_for)
            following.changed()
            keeping.retention = config.retention
            self._refused = reloading.refused
            self._notifier.ready(self._status(len(active)))
            await asyncio.sleep(0)
            del old  # which takes a moment, too

        def on_beat(beat: janitor.Beat, low: int, steady: bool) -> None:
            nonlocal beaten
            beaten = beat
            sending.answers.downtimes = beat.downtimes
            divide(beat.members)
            sending.hold(False)
            reading.low = low
            reading.steady_until = following.steady_until = beat.now + 1.5 * pace.beat if steady else 0.0
            nonlocal refusals
            refusals += bool(matcher.refused)
            if matcher.refused and is_worth_a_line(refusals):
                log.warning("events_without_tenant", events=matcher.refused)
                matcher.refused = 0

        def on_silence() -> None:
            sending.hold(True)
            reading.steady_until = following.steady_until = 0.0

        def problem() -> str:
            """What keeps a part from its work, in one sentence: of several, the first."""
            parts = (retrying, following, sending.feeder, keeping, reloading, around, wakeup, lock_holders)
            setbacks = (keeping.beating, keeping.minding, *(part.setbacks for part in parts))
            found = (lock_holders.problem, reading.problem, results.problem, *(each.sentence for each in setbacks))
            first = next(filter(None, (*found, wakeup.problem)), "")
            return first[:MOST_OF_A_PROBLEM].replace("\0", "")  # it must never be what a heartbeat fails for

        keeping = janitor.Janitor(
            registry,
            daemon_id,
            low,
            clock,
            self._config.retention,
            on_beat=on_beat,
            on_silence=on_silence,
            listen_pid=lambda: wakeup.pid,
            problem=problem,
            beat_seconds=pace.beat,
        )
        around = self._neighbours(registry, reading.rescue)
        wakeup.setbacks.is_alone = lock_holders.setbacks.is_alone = lambda: reading.connected
        reloading = reloader.Reloader(
            registry,
            daemon_id,
            self._config,
            self._load,
            apply,
            self._reload_wanted,
            dead_after=self._dead_after,
            on_reload=self._notifier.reloading,
            on_refused=lambda why: self._keep_the_old(why, len(own)),
            refused=self._refused,
            accept=self._accept,
            look_seconds=pace.look * 2,
        )
        with reloader.long_lived():
            await reloading.take_over(self._config, known)

        async with asyncio.TaskGroup() as parts:
            parts.create_task(keeping.run())
            ringing = parts.create_task(wakeup.run(daemon_id))
            burying = parts.create_task(around.run(daemon_id))
            watching = parts.create_task(watch(self._watch, self.reload, self._stopped))
            changing = parts.create_task(reloading.run())
            recording = parts.create_task(results.run())
            dispatching = parts.create_task(sending.run())
            claiming = [parts.create_task(part.run()) for part in (reading, retrying, following)]
            self._on_ready(daemon_id)
            await self._stopped.wait()
            started = time.monotonic()
            longest = max((endpoint.timeout for endpoint in own.values()), default=0.0)
            self._notifier.stopping(
                longest + CLAIM_SECONDS + 1.5 * DRAIN_SECONDS, f"finishing {sending.in_flight} attempts"
            )
            log.info("stopping", in_flight=sending.in_flight)
            watching.cancel()
            changing.cancel()
            burying.cancel()
            reading.stop()
            retrying.stop()
            following.stop()
            _, late = await asyncio.wait(claiming, timeout=CLAIM_SECONDS)
            for claim in late:
                claim.cancel()
            ringing.cancel()
            sending.stop()
            await asyncio.wait([dispatching])
            results.stop()
            _, late = await asyncio.wait([recording], timeout=DRAIN_SECONDS)
            if late:
                # The database is away: what was sent and is not recorded will be sent once more.
                log.error("results_not_recorded", results=results.pending)
                recording.cancel()
            keeping.stop()
        log.info("stopped", seconds=round(time.monotonic() - started, 1), **results.totals)
        return reading.unfinished

    async def _leave(
        self, daemon_id: int, batches: Batches, parking: ParkingStore, registry: Registry, unfinished: list[int]
    ) -> None:
        try:
            async with asyncio.timeout(DRAIN_SECONDS / 2):
                if unfinished:
                    await batches.give_back(daemon_id, unfinished)
                await parking.let_go(daemon_id)
                await registry.leave(daemon_id)
        except (StoreUnavailable, TimeoutError):
            log.warning("left_without_goodbye", batches=len(unfinished))  # the others adopt them when our beats are old
