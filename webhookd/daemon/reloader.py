"""Keeps the running configuration what the files say, and tells the other daemons.

    SIGHUP, a watched file, `webhookd reload` ──▶ load, in a thread ──▶ refused? ──▶ into the database ──▶ apply
    each second: has anybody else changed an endpoint? ──▶ change that one

Fan-out follows the database: an endpoint that another daemon knows and we do not is owed its events all the same, and
one counts as removed only when every live daemon has dropped it. A reload that fails, or removes too much, leaves
everything as it is.
"""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import structlog

from webhookd.config.config import Config
from webhookd.daemon.catalog import Catalog, Changes, Known, opens
from webhookd.errors import ConfigError, SchemaMismatch, StoreRefused, StoreUnavailable, WebhookdError
from webhookd.message.kept import Kept
from webhookd.policy.difference import ACCEPT, difference, refusal
from webhookd.tasks import Setbacks, wait_for

LOOK_SECONDS = 1.0
REMOVE_EVERY = 5  # looks between two tries to count endpoints as removed that only we have dropped
FEW = 10  # endpoints that are opened on the loop
AT_A_TIME = 200  # endpoints that are freed before others have their turn on the loop

log = structlog.get_logger("webhookd.reloader")


class Registry(Protocol):
    """What the reloader needs of the store."""

    keys: Sequence[str]  # names of those with which we open what the API has made

    async def versions(self) -> tuple[int, int]:
        """How often endpoints have changed, and how often a reload was asked for."""

    async def sync_endpoints(
        self, daemon: int, specs: Mapping[tuple[str, str], Mapping[str, Any]], config_hash: str, dead_after: float
    ) -> Known:
        """Write our endpoints; all that are there."""

    async def agree(
        self, specs: Mapping[tuple[str, str], Mapping[str, Any]], config_hash: str, dead_after: float
    ) -> None:
        """Count as removed what no live daemon has; `specs` are of our files."""

    async def known(
        self,
        specs: Mapping[tuple[str, str], Mapping[str, Any]],
        ids: Sequence[int],
        config_hash: str,
        dead_after: float,
    ) -> Known:
        """All endpoints that are there; those with these numbers are of our files, and are there as well."""

    async def changes(self, since: int) -> tuple[int, Sequence[Kept]] | None:
        """Which have changed since that version, and as of which; None when they are many."""

    async def reload_refused(self, daemon: int, problem: str) -> None:
        """Show that we kept the old configuration, and why."""

    async def accepted_removals(self) -> frozenset[str]:
        """Labels of endpoints whose removal an operator has accepted of late."""


class Reloader:
    """Runs beside the other parts. `apply(config, catalog, version)` is awaited with every configuration, and with what
    is to be all anew; `change(changes, version)` is called with what has changed in the catalog beside it.

    `wanted` is set by whoever wants the files read again; asking a thousand times is asking once. `refused` says why
    the files were not taken, also when that was in a life before this one. `accept` is the command by which an operator
    accepts whatever removals are refused.
    """

    def __init__(
        self,
        registry: Registry,
        daemon: int,
        config: Config,
        load: Callable[[], Config],
        apply: Callable[[Config, Catalog, int], Awaitable[None]],
        change: Callable[[Changes, int], None],
        wanted: asyncio.Event,
        *,
        dead_after: float,
        on_reload: Callable[[], None],
        on_refused: Callable[[str], None],
        refused: str = "",
        accept: str = ACCEPT,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._store = registry
        self._daemon = daemon
        self._config = config
        self._load = load
        self._apply = apply
        self._change = change
        self._dead_after = dead_after
        self._on_reload = on_reload
        self._on_refused = on_refused
        self._look_seconds = look_seconds
        self.refused = refused  # why the files were not taken, as long as they are not
        self._is_shown = not refused
        self._accept = accept
        self._wanted = wanted
        self._versions: tuple[int, int] | None = None
        self._version = 0  # of the endpoints that we know
        self._changing = asyncio.Lock()
        self.setbacks = Setbacks("reloader", look_seconds)
        self._catalog: Catalog | None = None
        self._ids: Sequence[int] = ()  # the numbers of our files' endpoints
        self._closed: frozenset[str] = frozenset()  # endpoints of the API that we cannot open, and why

    async def run(self) -> None:
        """Reload when that is wanted, and look whether others did, until cancelled."""
        looks = 0
        while True:
            try:
                if self._versions is None:
                    self._versions = await self._store.versions()
                if await wait_for(self._wanted, self._look_seconds):
                    self._wanted.clear()  # before reading: what is asked for meanwhile must survive
                    with long_lived():
                        await self._reload()
                looks += 1
                if looks % REMOVE_EVERY == 0 and self._catalog is not None and self._catalog.has_strangers:
                    await self._store.agree(self._config.specs, self._config.config_hash, self._dead_after)
                await self._look(self._versions)
                if not self._is_shown:
                    await self._show()
                self.setbacks.over()
            except ConfigError as error:
                await self._refuse(error.mistakes)
            except Exception as error:
                await asyncio.sleep(self.setbacks.met(error))

    async def _look(self, before: tuple[int, int]) -> None:
        versions = self._versions = await self._store.versions()
        if versions[1] != before[1]:
            self._wanted.set()
        await self.catch_up(versions[0])  # also when the last time it failed

    async def catch_up(self, version: int) -> None:
        """Know at least the endpoints of that version, rather than with the next look: events are to be matched."""
        if self._version < version:
            async with self._changing:
                if self._version < version:
                    await self._follow()

    async def _follow(self) -> None:
        """Take what has changed into the catalog, if that is not so much that all is better read again."""
        catalog, found = self._catalog, await self._store.changes(self._version)
        if found is not None and catalog is not None:
            version, changed = found
            read = await asyncio.to_thread(catalog.read, changed) if len(changed) > FEW else catalog.read(changed)
            # Nothing is awaited from here on: who is owed what, and who is sent it, change together.
            changes = catalog.take(read)
            if changes is not None:
                self._change(changes, version)
                self._version = version
                self._tell_closed(catalog)
                return
        config = self._config
        with long_lived():
            known = await self._store.known(config.specs, self._ids, config.config_hash, self._dead_after)
            await self.take_over(config, known)

    async def _reload(self) -> None:
        self._on_reload()
        try:
            config = await asyncio.to_thread(self._read)
            if config.empty and self._config.specs:
                raise ConfigError([config.empty])
            change = await asyncio.to_thread(difference, self._config.specs, config.specs)
            accepted = await self._store.accepted_removals() if change.removed else frozenset()
            why = refusal(change, len(self._config.specs), self._accept)
            if why and not accepted.issuperset(change.removed):
                raise ConfigError([why])
            async with self._changing:
                await self._write(config)
                before, self._config = self._config, config
            log.info(
                "reloaded",
                added=len(change.added),
                removed=len(change.removed),
                changed=len(change.changed),
                restart_needed=[
                    name for name in ("daemon", "database", "traces", "log") if _differs(before, config, name)
                ]
                + ["api"] * (before.api.listen != config.api.listen)
                + ["metrics"] * (before.metrics.listen != config.metrics.listen),
            )
            old = [*before.endpoints, *before.specs.values()]
            del before
            while old:  # to free all of them would stall the loop as well
                del old[-AT_A_TIME:]
                await asyncio.sleep(0)
        except (StoreUnavailable, SchemaMismatch):
            self._wanted.set()
            raise
        except StoreRefused as error:
            raise ConfigError([f"the database does not take these endpoints: {error}"]) from error
        except (WebhookdError, MemoryError):
            raise
        except Exception:
            log.exception("reload_broke")
            raise ConfigError(["a bug of webhookd keeps it from taking these files over; the log has more"]) from None

    def _read(self) -> Config:
        try:
            return self._load()
        except ConfigError:
            raise
        except Exception:
            # A bug in a check must not end what runs.
            log.exception("reading_broke")
            raise ConfigError(["a bug of webhookd keeps it from reading these files; the log has more"]) from None

    async def _write(self, config: Config) -> None:
        before, self._store.keys = self._store.keys, opens(config)
        try:
            known = await self._store.sync_endpoints(self._daemon, config.specs, config.config_hash, self._dead_after)
        except BaseException:
            self._store.keys = before
            raise
        self.refused, self._is_shown = "", True  # our row does not say it any longer
        await self.take_over(config, known)

    async def take_over(self, config: Config, known: Known) -> None:
        """Go on with this configuration and these endpoints."""
        # In a thread, because thousands of endpoints would stall the loop.
        catalog = await asyncio.to_thread(Catalog, config, known)
        self._catalog = None  # what fails half way is made anew, and not gone on with
        await self._apply(config, catalog, known.version)
        self._catalog, self._ids, self._version = catalog, known.ids, known.version
        self._tell_closed(catalog)

    def _tell_closed(self, catalog: Catalog) -> None:
        closed = frozenset(catalog.closed.values())
        if not closed <= self._closed:
            log.warning("endpoints_sealed", endpoints=len(closed), first=min(closed - self._closed))
        self._closed = closed

    async def _refuse(self, mistakes: Sequence[str]) -> None:
        log.error("reload_refused", mistakes=list(mistakes))
        # A file's name need not be UTF-8, and what is quoted of a file may have a NUL: Postgres takes neither.
        self.refused = "\n".join(mistakes).replace("\0", "").encode("utf-8", "backslashreplace").decode()
        self._is_shown = False
        self._on_refused(self.refused)
        try:
            await self._show()
        except (StoreUnavailable, StoreRefused, SchemaMismatch):
            log.warning("refusal_not_shown")

    async def _show(self) -> None:
        await self._store.reload_refused(self._daemon, self.refused)
        self._is_shown = True


@contextmanager
def long_lived() -> Iterator[None]:
    """What the block makes is here to stay: the garbage collector leaves it alone, now and later.

    It would stop the loop for more than 100 ms to look through the objects of 8,000 endpoints, again and again.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def _differs(before: Config, after: Config, section: str) -> bool:
    return bool(getattr(before, section) != getattr(after, section))
