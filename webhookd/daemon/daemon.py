"""The composition root: builds an engine and what belongs to a service, runs them in one TaskGroup, and stops them."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from webhookd import __version__
from webhookd.config.config import Config
from webhookd.daemon.catalog import Catalog, Changes, opens
from webhookd.daemon.joining import Joined, join, leave
from webhookd.daemon.notify import Notifier
from webhookd.daemon.processes import ourselves, see
from webhookd.daemon.reloader import Reloader, long_lived
from webhookd.daemon.serving import Serving, tenants_egress, with_parts
from webhookd.daemon.tracing import traced
from webhookd.daemon.watcher import watch
from webhookd.egress.oauth import Tokens
from webhookd.egress.ways import Ways
from webhookd.engine.dispatch import dispatcher
from webhookd.engine.dispatch.lanes import Sender
from webhookd.engine.engine import CLAIM_SECONDS, DRAIN_SECONDS, Engine, Intervals, Stores
from webhookd.engine.intake.outage import Outage
from webhookd.engine.janitor import Janitor
from webhookd.engine.neighbours import Neighbours
from webhookd.errors import Moved
from webhookd.message.kept import TIMEOUT_MOST
from webhookd.metrics.families import Reading
from webhookd.policy.difference import ACCEPT
from webhookd.store.backlog import Backlog
from webhookd.store.batches import Batches
from webhookd.store.database import Database
from webhookd.store.dial import Dsn
from webhookd.store.discards import DiscardStore
from webhookd.store.lock_holders import LockHolders
from webhookd.store.order import OrderStore
from webhookd.store.parking import ParkingStore
from webhookd.store.registry import Registry
from webhookd.store.replays import Replays
from webhookd.store.results import Results
from webhookd.store.shots import Shots
from webhookd.store.statistics import StatisticStore
from webhookd.store.wakeup import WakeUp
from webhookd.tally import Tally
from webhookd.tasks import cancelled_by, first_of

# Objects until garbage is looked for, by generation. Python does it after 700, again and again at all that is in hand:
# some percent of the time, and more while pollers wait.
COLLECTED = (10_000, 10, 10)
MOST_OF_A_PROBLEM = 500  # characters

log = structlog.get_logger("webhookd.daemon")

NORMAL = Intervals()
SILENT = Notifier()
STARTS, ENDS = "It starts: it has not joined the others yet.", "It ends, or begins anew."


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
        intervals: Intervals = NORMAL,
        on_ready: Callable[[int], None] = lambda _: None,
        log_lines_dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        self._config = config
        self._dsn = dsn
        self._direct_dsn = direct_dsn or dsn
        self._load = load or (lambda: config)
        self._watch = watch
        self._accept = accept
        self._notifier = notifier
        self._intervals = intervals
        self._on_ready = on_ready
        self._log_lines_dropped = log_lines_dropped
        self._stopped = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._refused = ""  # why the files were not taken, over all lives
        self._user_agent = f"webhookd/{__version__}"
        self._tally = Tally()
        self._engine: Engine | None = None  # while it may deliver
        self._waits = STARTS  # why it cannot deliver, where that is no fault of the engine's
        self._loaded_at = 0.0
        self._traced: Callable[[Sender], Sender] = lambda sender: sender
        self.serving = Serving(dsn, self._tally, self._read, self._unready)

    @property
    def api_url(self) -> str:
        """Where the API is served, once it is."""
        return self.serving.api_url

    @property
    def metrics_url(self) -> str:
        """Where monitoring asks, once it can."""
        return self.serving.metrics_url

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
        gc.set_threshold(*COLLECTED)
        # Around everything, also a database that is away and a slow stop. A TaskGroup would wrap what this raises.
        watchdog = asyncio.create_task(self._notifier.watchdog())
        try:
            async with traced(self._config.traces.endpoint) as self._traced, self.serving.open(self._config):
                while await self._moved() and not self._stopped.is_set():
                    pass
        finally:
            watchdog.cancel()

    def _read(self, loop_lag: float) -> Reading:
        """What there is to see of us now."""
        reading = Reading(
            ready=not self._unready(),
            in_flight_limit=self._config.delivery.max_in_flight,
            log_lines_dropped=self._log_lines_dropped(),
            loop_lag=loop_lag,
            config_hash=self._config.config_hash,
            reload_refused=bool(self._refused),
            loaded_at=self._loaded_at,
        )
        return reading if self._engine is None else with_parts(reading, self._engine)

    def _unready(self) -> str:
        """Why it cannot deliver now, in one sentence, or nothing."""
        return self._waits or ("" if self._engine is None else self._engine.away)

    async def _moved(self) -> bool:
        """Live; True when the database has moved, so that all in memory was dropped and a new life has to begin."""
        moved = False
        try:
            await self._live()
        except* Moved as reasons:
            log.error("database_moved", reason=str(first_of(reasons)))
            moved = True
        if moved:
            await self.serving.reconnect()
        return moved

    async def _live(self) -> None:
        outage = Outage()
        async with (
            Database(self._dsn, tally=self._tally) as database,
            # From here on, since who joins may have to wait for a lock, too.
            LockHolders(self._dsn, lambda: outage.is_over) as lock_holders,
            WakeUp(self._direct_dsn, lambda: outage.is_over) as wakeup,
            Ways(self._config.egress, tenants_egress(self._config), self._user_agent, self._tally) as sender,
        ):
            registry = Registry(database)
            registry.keys = opens(self._config)
            look = self._intervals.neighbours
            neighbours = Neighbours(registry, ourselves(), see, self._longest_lease, look_seconds=look)
            joining = join(self._config, database, registry, neighbours, self._intervals, self._told)
            joined = await cancelled_by(self._stopped, joining)
            self._waits = STARTS
            if joined is not None:
                parts = database, registry, neighbours, lock_holders, wakeup, outage, sender
                unfinished = await self._deliver(joined, *parts)
                await leave(joined.daemon_id, database, registry, unfinished)

    @asynccontextmanager
    async def _delivering(self, engine: Engine) -> AsyncIterator[None]:
        """However the block ends, nobody waits for what no longer comes."""
        self._engine, self._waits = engine, ""
        try:
            yield
        finally:
            self._engine, self._waits = None, ENDS
            engine.polls.stop()
            self.serving.configure(self._config)

    def _told(self, why: str) -> None:
        self._waits = why
        self._notifier.ready(why)

    def _longest_lease(self) -> float:
        timeouts = (endpoint.timeout for endpoint in self._config.endpoints)
        return max(self._config.delivery.timeout, TIMEOUT_MOST, *timeouts) + dispatcher.LEASE_MARGIN

    def _status(self, endpoints: int) -> str:
        old = f" on the old configuration: {self._refused.splitlines()[0]}" if self._refused else ""
        return f"delivering to {endpoints} endpoints{old}"

    def _keep_the_old(self, why: str, endpoints: int) -> None:
        self._refused = why
        self._notifier.ready(self._status(endpoints))

    async def _deliver(
        self,
        joined: Joined,
        database: Database,
        registry: Registry,
        neighbours: Neighbours,
        lock_holders: LockHolders,
        wakeup: WakeUp,
        outage: Outage,
        sender: Ways,
    ) -> list[int]:
        """Run the parts until stopped; the ids of the batches that were not finished."""
        daemon_id, intervals, tokens = joined.daemon_id, self._intervals, Tokens(sender)

        async def apply(config: Config, catalog: Catalog, version: int) -> None:
            ours = catalog.own.values()
            # An inactive endpoint is sent nothing: it has no queue, and what it was owed stays in the backlog.
            active = [endpoint for endpoint in ours if endpoint.active and not endpoint.polled]
            for _ in engine.prepare(active):
                await asyncio.sleep(0)
            # From here on all at once, or a cursor would pass over what its endpoint is owed.
            if config is not self._config or not self._loaded_at:
                self._loaded_at = time.time()
            self._config = config  # a new life goes on with it
            self.serving.configure(config, engine.polls)
            sender.configure(config.egress, tenants_egress(config))
            old = engine.configure(active, catalog.matcher, config.delivery, version)
            engine.shots.configure([endpoint for endpoint in ours if not endpoint.polled], config.delivery)
            engine.polls.configure(ours, config.delivery)
            tokens.keep({endpoint.grant for endpoint in active if endpoint.grant})
            janitor.configure(config.retention)
            self._refused = reloader.refused
            self._notifier.ready(self._status(len(active)))
            await asyncio.sleep(0)
            del old  # which takes a moment, too

        def change(changes: Changes, version: int) -> None:
            sent = [endpoint for endpoint in changes.ours if not endpoint.polled]
            active = [endpoint for endpoint in sent if endpoint.active]
            inactive = [endpoint.id for endpoint in sent if not endpoint.active]
            engine.change(active, [*changes.gone, *inactive], version)
            engine.shots.change(sent, changes.gone)
            engine.polls.change(changes.ours, changes.gone)
            self._notifier.ready(self._status(len(engine.endpoints)))

        def problem() -> str:
            """What keeps a part from its work, in one sentence: of several, the first."""
            parts = janitor, reloader, neighbours, wakeup, lock_holders
            setbacks = janitor.beating, janitor.minding, *engine.setbacks, *(part.setbacks for part in parts)
            sentences = (each.sentence for each in setbacks)
            parts_of_engine = engine.reader, engine.recorder, engine.dispatcher.scheduler
            found = (lock_holders.problem, *(part.problem for part in parts_of_engine), *sentences, wakeup.problem)
            first = next(filter(None, found), "")
            return first[:MOST_OF_A_PROBLEM].replace("\0", "")  # it must never be what a heartbeat fails for

        engine = Engine(
            daemon_id,
            Stores(
                batches=Batches(database),
                backlog=Backlog(database, daemon_id, intervals.dead_after),
                parking=ParkingStore(database),
                results=Results(database),
                shots=Shots(database, daemon_id),
                replays=Replays(database),
                discards=DiscardStore(database),
                order=OrderStore(database, daemon_id),
                statistics=StatisticStore(database),
                polled_log=ParkingStore(self.serving.api_database or database),
                polled=Batches(self.serving.api_database or database),
            ),
            wakeup,
            outage,
            self._traced(tokens),
            joined.clock,
            joined.parking,
            self._config.delivery,
            intervals,
            user_agent=self._user_agent,
            tally=self._tally,
            catch_up=lambda version: reloader.catch_up(version),
        )
        engine.begin(joined.beat, joined.low)
        engine.discard(joined.discards)
        janitor = Janitor(
            registry,
            daemon_id,
            joined.low,
            joined.clock,
            self._config.retention,
            on_beat=engine.beaten,
            on_silence=engine.silenced,
            listen_pid=lambda: wakeup.pid,
            problem=problem,
            beat_seconds=intervals.beat,
        )
        reloader = Reloader(
            registry,
            daemon_id,
            self._config,
            self._load,
            apply,
            change,
            self._reload_wanted,
            dead_after=intervals.dead_after,
            on_reload=self._notifier.reloading,
            on_refused=lambda why: self._keep_the_old(why, len(engine.endpoints)),
            refused=self._refused,
            accept=self._accept,
            look_seconds=intervals.look * 2,
        )
        with long_lived():
            await reloader.take_over(self._config, joined.endpoints)

        async with self._delivering(engine), asyncio.TaskGroup() as parts:
            parts.create_task(janitor.run())
            beside = [
                parts.create_task(neighbours.run(daemon_id, engine.reader.rescue)),
                parts.create_task(watch(self._watch, self.reload, self._stopped)),
                parts.create_task(reloader.run()),
            ]
            engine.start(parts)
            self._on_ready(daemon_id)
            await self._stopped.wait()
            started, in_flight = time.monotonic(), engine.dispatcher.in_flight
            longest = max((endpoint.timeout for endpoint in engine.endpoints.values()), default=0.0)
            self._notifier.stopping(longest + CLAIM_SECONDS + 1.5 * DRAIN_SECONDS, f"finishing {in_flight} attempts")
            self._waits = ENDS
            log.info("stopping", in_flight=in_flight)
            for part in beside:
                part.cancel()
            await engine.stop()
            janitor.stop()
        log.info("stopped", seconds=round(time.monotonic() - started, 1), **engine.recorder.totals)
        return engine.reader.unfinished
