"""What a daemon serves meanwhile: the API, and what monitoring asks for; both also while the database is away."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Final

import structlog

from webhookd.config.config import Config
from webhookd.engine.engine import Engine
from webhookd.engine.polled.polls import Polls
from webhookd.message.sealing import Keyring
from webhookd.metrics.families import Reading
from webhookd.metrics.looks import Look, LoopLag
from webhookd.metrics.pages import Pages
from webhookd.model import Egress
from webhookd.store.database import Database
from webhookd.store.dial import Dsn
from webhookd.store.overview import Overview, health, overview
from webhookd.tally import Tally
from webhookd.units import DAY
from webhookd.web.api import Api
from webhookd.web.operation import Around
from webhookd.web.server import serve
from webhookd.web.shapes import WORD

HEALTH_MOST, REST_MOST = 60.0, 600.0  # seconds between two looks at the database, however long one takes
API_CONNECTIONS: Final = 4  # to the database, so that no question of a client takes one from the engine

log = structlog.get_logger("webhookd.daemon")


def tenants_egress(config: Config) -> Egress | None:
    """What endpoints may reach that tenants have made by the API; None for nothing: they may not pass by the proxy."""
    if config.egress.proxy is not None and not config.api.through_proxy:
        return None
    return Egress(config.api.allow_http, config.api.allow_networks, config.egress.proxy)


def around(config: Config, polls: Polls | None = None) -> Around:
    """What the API has to know of the configuration."""
    return Around(
        settings=config.api,
        max_payload=config.delivery.max_payload,
        give_up_most=config.retention.events - DAY,
        keyring=Keyring(config.encryption.keys),
        egress=tenants_egress(config),
        event_types={name: each.description for name, each in config.event_types.items() if re.fullmatch(WORD, name)},
        since=datetime.now(UTC),
        examples={name: each.example for name, each in config.event_types.items() if each.example is not None},
        formats=tuple(config.formats),
        polls=polls,
    )


def with_parts(reading: Reading, engine: Engine) -> Reading:
    """The same, with what the parts of a daemon are at that delivers."""
    return reading._replace(
        in_flight=engine.dispatcher.in_flight,
        slots_in_use=engine.dispatcher.scheduler.started,
        recorder_queue=engine.recorder.pending,
        poll_consumers=engine.polls.waiting,
    )


class Serving:
    """Serves what the configuration says, as long as `open` is entered.

    `read(longest stall of the loop)` is what the daemon is at, and `unready()` why it cannot deliver, or nothing.
    """

    def __init__(self, dsn: Dsn, tally: Tally, read: Callable[[float], Reading], unready: Callable[[], str]) -> None:
        self._dsn = dsn
        self._tally = tally
        self._read = read
        self._unready = unready
        self._api: Api | None = None
        self._pages: Pages | None = None
        self._seen: Overview | None = None
        self._databases: list[Database] = []
        self.api_database: Database | None = None  # that of the API, once it is served
        self.api_url = self.metrics_url = ""  # where each is served, once it is

    @asynccontextmanager
    async def open(self, config: Config) -> AsyncIterator[None]:
        """Serve while the block runs. ConfigError when an address cannot be listened on."""
        async with AsyncExitStack() as stack:
            if config.metrics.listen:
                await stack.enter_async_context(self._metrics(config))
            if config.api.listen:
                await stack.enter_async_context(self._served_api(config))
            yield

    @asynccontextmanager
    async def _served_api(self, config: Config) -> AsyncIterator[None]:
        async with Database(self._dsn, size=API_CONNECTIONS, tally=self._tally) as database:
            self._databases.append(database)
            self._api, self.api_database = Api(database, around(config)), database
            async with serve(self._api.answer, config.api.listen, os.environ, "[api]") as where:
                self.api_url = where
                log.info("api_listening", where=where)
                yield

    @asynccontextmanager
    async def _metrics(self, config: Config) -> AsyncIterator[None]:
        # Connections of their own: they have to answer while all others wait, and the view while the rest takes long.
        async with Database(self._dsn, size=2, tally=self._tally) as database:
            self._databases.append(database)
            self._tally.endpoints = {}
            is_alone, lag = lambda: not self._unready(), LoopLag()
            view = Look("look at the health", lambda: health(database), HEALTH_MOST, is_alone)
            rest = Look("look at the numbers", lambda: self._overview(database), REST_MOST, is_alone)
            self._pages = pages = Pages(self._tally, view, rest, lambda: self._read(lag.longest), self._unready)
            pages.with_endpoints = config.metrics.endpoints
            looking = [asyncio.create_task(each.run()) for each in (lag, view, rest)]
            try:
                async with serve(pages.answer, config.metrics.listen, os.environ, "[metrics]") as where:
                    self.metrics_url = where
                    log.info("metrics_listening", where=where)
                    yield
            finally:
                for each in looking:
                    each.cancel()
                await asyncio.wait(looking)

    async def reconnect(self) -> None:
        """Ask where the DSN leads to now: the database has moved, and who was there before may still answer."""
        for database in self._databases:
            await database.reconnect()

    async def _overview(self, database: Database) -> Overview:
        wanted = self._pages is None or self._pages.with_endpoints
        self._seen = found = await overview(database, endpoints=wanted, before=self._seen)
        self._tally.keep(found.ids)
        return found

    def configure(self, config: Config, polls: Polls | None = None) -> None:
        """Go on with this configuration; where something listens stays until the next start."""
        if self._api is not None:
            self._api.configure(around(config, polls))
        if self._pages is not None:
            self._pages.with_endpoints = config.metrics.endpoints
