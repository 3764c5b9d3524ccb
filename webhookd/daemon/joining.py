"""Becoming a daemon in the eyes of the others, and leaving them."""

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog

from webhookd import __version__
from webhookd.config.config import Config
from webhookd.daemon.processes import ourselves
from webhookd.engine import janitor
from webhookd.engine.clock import Clock
from webhookd.engine.engine import DRAIN_SECONDS, Intervals
from webhookd.engine.neighbours import Neighbours
from webhookd.errors import ConfigError, StoreRefused, StoreUnavailable
from webhookd.policy.discards import Discards
from webhookd.policy.parking import Parking
from webhookd.store.batches import Batches
from webhookd.store.database import Database
from webhookd.store.discards import DiscardStore
from webhookd.store.migrations import check_schema
from webhookd.store.parking import ParkingStore
from webhookd.store.registry import Beat, Known, Registry
from webhookd.store.registry import Joined as Registered
from webhookd.tasks import Setbacks

AWAY_FIRST, AWAY_MOST = 0.1, 5.0

log = structlog.get_logger("webhookd.daemon")


class Joined(NamedTuple):
    """What a daemon knows when the others know it."""

    daemon_id: int
    low: int
    beat: Beat
    endpoints: Known
    parking: Parking
    discards: Discards
    clock: Clock


async def join(
    config: Config,
    database: Database,
    registry: Registry,
    neighbours: Neighbours,
    intervals: Intervals,
    tell: Callable[[str], None],
) -> Joined:
    """Join, however long the database keeps us waiting; `tell` hears what for.

    The others see nothing of one that cannot: its row comes last. The first heartbeat makes it count. ConfigError when
    the database takes none of these files.
    """
    setbacks, told, clock = Setbacks("start", AWAY_FIRST, AWAY_MOST), "", Clock()
    registered: Registered | None = None
    while True:
        try:
            if registered is None:
                await _bind(config, database, registry)
                await neighbours.ask()
                await neighbours.bury()  # what a predecessor had in hand is ours, and nobody waits for it to agree
                parking = await ParkingStore(database).parking()
                discards = await DiscardStore(database).all()
                registered = await registry.join(
                    socket.gethostname(),
                    __version__,
                    config.specs,
                    config.config_hash,
                    intervals.dead_after,
                    ourselves(),
                )
                if registered.has_company:
                    await asyncio.sleep(intervals.beat * janitor.SETTLE_BEATS)
            asked = time.monotonic()
            beat = await registry.beat(registered.daemon_id, registered.low, intervals.dead_after)
            clock.measure(beat.now, asked, time.monotonic())
            if not beat.known:
                registered = None  # it was restored in this very moment
                continue
        except StoreRefused as error:
            raise ConfigError([f"the database does not take the endpoints of these files: {error}"]) from error
        except Exception as error:
            pause = setbacks.met(error)
            if setbacks.problem != told:
                log.warning("waiting_for_database", reason=setbacks.problem)
                tell(f"waiting for the database: {setbacks.problem}")
            told = setbacks.problem
            await asyncio.sleep(pause)
        else:
            setbacks.over()
            daemon_id, low = registered.daemon_id, registered.low
            log.info("started", daemon=daemon_id, endpoints=len(config.endpoints), version=__version__)
            return Joined(daemon_id, low, beat, registered.known, parking, discards, clock)


async def _bind(config: Config, database: Database, registry: Registry) -> None:
    """Know that this is our database, and that it knows no endpoint which files without any would remove."""
    async with database.transaction() as connection:
        await check_schema(connection)
    database.place = await registry.bind(config.daemon.environment)
    if config.empty and await registry.has_endpoints():
        raise ConfigError([config.empty])


async def leave(daemon_id: int, database: Database, registry: Registry, unfinished: Sequence[int]) -> None:
    """Give back these batches, and what is parked; without a database the others see by our beats that we are gone."""
    try:
        async with asyncio.timeout(DRAIN_SECONDS / 2):
            if unfinished:
                await Batches(database).give_back(daemon_id, list(unfinished))
            await ParkingStore(database).let_go(daemon_id)
            await registry.leave(daemon_id)
    except (StoreUnavailable, TimeoutError):
        log.warning("left_without_goodbye", batches=len(unfinished))  # the others adopt them when our beats are old
