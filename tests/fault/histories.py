"""Daemons of one database that join, die, stop, reload, freeze and park at random, with a receiver that takes no time.

They are whole daemons in this process, at a small beat; only what speaks HTTP is a fake, which knows who sends what.
"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from random import Random
from types import TracebackType
from typing import Any, Self

import asyncpg
import pytest
import structlog

from tests.integration.conftest import Sql, configuration
from tests.waiting import until
from webhookd.config.config import Config
from webhookd.daemon import daemon, reloader
from webhookd.daemon.daemon import Daemon
from webhookd.engine import engine, janitor, retrier
from webhookd.engine.dispatch import dispatcher, spills
from webhookd.engine.dispatch.feeds import Feed
from webhookd.engine.engine import Intervals
from webhookd.engine.parked import endings, follower
from webhookd.errors import ConfigError
from webhookd.exchange import NoResponse, Request, Response
from webhookd.policy import breaker
from webhookd.store.database import Database
from webhookd.store.registry import Beat, Registry

PACE = Intervals(beat=0.5, rescue=0.2, look=0.03, flush=0.004, patience=0.2)
DEAD_AFTER = PACE.beat * janitor.DEAD_AFTER_BEATS
CAPS = {"always": 2, "a": 1, "b": 1, "c": 3, "d": 2, "line": 1, "lines": 3}
ORDERED: Mapping[str, bool | str] = {"line": True, "lines": "key"}
SPILLED = 20
MOST = 4  # daemons at one time
UNTIL_SETTLED = 60.0  # seconds; it takes two heartbeats where the machine has nothing else to do

_member: ContextVar["Member"] = ContextVar("_member")


class Member:
    """A daemon of the fleet, and what is to be known of it from within."""

    def __init__(self, number: int, config: Config, dsn: str, network: "Network") -> None:
        self.number = number
        self.network = network
        self.id = 0  # in the database
        self.config = config
        self.refuses = False
        self.thawed = asyncio.Event()
        self.thawed.set()
        self.beaten_at = 0.0
        self.slow_at = 0.0  # when others may last have taken it for dead, though it was not
        self.dispatcher: dispatcher.Dispatcher
        self.daemon = Daemon(config, dsn, load=self._load, intervals=PACE, on_ready=self._ready)
        self.ready = asyncio.Event()
        self.task: asyncio.Task[None]

    def _ready(self, id_: int) -> None:
        self.id = id_
        self.ready.set()

    def _load(self) -> Config:
        if self.refuses:
            raise ConfigError(["it is refused"])
        return self.config

    @property
    def has(self) -> set[str]:
        """What it can send to, by its files."""
        return {endpoint.name for endpoint in self.config.endpoints if endpoint.active}

    @property
    def names(self) -> set[str]:
        return {endpoint.name for endpoint in self.config.endpoints}

    @property
    def may_be_taken_for_dead(self) -> bool:
        """True when it could not beat for a while, of late."""
        now = asyncio.get_running_loop().time()
        return not self.thawed.is_set() or max(self.slow_at, self.beaten_at + DEAD_AFTER / 2) > now - 3 * DEAD_AFTER

    def shares(self) -> dict[str, tuple[int, Feed]]:
        """By name, the slots that it has of its endpoints, and from where it feeds them."""
        queues = self.dispatcher._queues.values()
        return {queue.endpoint.name: (queue.most, queue.feed) for queue in queues}


class Watched(dispatcher.Dispatcher):
    """A dispatcher that its member knows."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        _member.get().dispatcher = self


class Sender:
    """Takes the place of the real one."""

    def __init__(self, *_: object) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def configure(self, *_: object) -> None: ...

    async def send(self, request: Request) -> Response | NoResponse:
        member = _member.get()
        name = request.url.removeprefix("https://").partition(".")[0]
        told = json.loads(request.content)["data"]
        return await member.network.send(member, name, told["n"], told["key"])


class Gated(Database):
    """Silent while its daemon is frozen."""

    @asynccontextmanager
    async def connection(self) -> AsyncIterator["asyncpg.pool.PoolConnectionProxy[Any]"]:
        await _member.get().thawed.wait()
        async with super().connection() as connection:
            yield connection


class Beating(Registry):
    """Tells its member when it was heard."""

    async def beat(self, *arguments: Any, **more: Any) -> Beat:
        found = await super().beat(*arguments, **more)
        member, now = _member.get(), asyncio.get_running_loop().time()
        if now - member.beaten_at > DEAD_AFTER / 2:
            member.slow_at = now
        member.beaten_at = now
        return found


def install(patch: pytest.MonkeyPatch) -> None:
    """Let daemons be those of a fleet, soon in everything and silent in the log."""
    patch.setattr(daemon, "Ways", Sender)
    patch.setattr(daemon, "Database", Gated)
    patch.setattr(daemon, "Registry", Beating)
    patch.setattr(engine, "Dispatcher", Watched)
    patch.setattr(breaker, "PROBE_FIRST", 0.05)
    patch.setattr(breaker, "PROBE_MOST", 0.2)
    patch.setattr(spills, "SPILLED_MOST", SPILLED)
    patch.setattr(follower, "SPILLED_MOST", SPILLED)
    patch.setattr(endings, "SPILLED_MOST", SPILLED)
    patch.setattr(dispatcher, "LEASE_MARGIN", 3.0)
    patch.setattr(retrier, "START_MARGIN", 0.5)
    patch.setattr(reloader, "REMOVE_EVERY", 2)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


class Network:
    """What receivers do, who sends to whom, and what must not be."""

    def __init__(self) -> None:
        self.fails: set[str] = set()
        self.slow: set[str] = set()
        self.members: list[Member] = []
        self.flying: Counter[str] = Counter()
        self.peaks: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.lines: dict[tuple[str, str], list[int]] = {}  # what ordered endpoints got, each once

    async def send(self, member: Member, name: str, number: int, key: str) -> Response | NoResponse:
        """An answer, when the daemon that asks is not frozen."""
        self._look_at_senders(name)
        self.flying[name] += 1
        self.peaks[name] = max(self.peaks[name], self.flying[name])
        try:
            await asyncio.sleep(0.05 if name in self.slow else 0.0)
            await member.thawed.wait()
            if name in self.fails:
                return Response(500)
            self._look_at_order(name, number, key)
            return Response(200)
        finally:
            self.flying[name] -= 1

    def _look_at_senders(self, name: str) -> None:
        senders = [
            member.number
            for member in self.members
            if member.shares().get(name, (0, Feed.NONE))[1] is Feed.CURSOR and not member.may_be_taken_for_dead
        ]
        if len(senders) > 1:
            self.wrong.append(f"{name} is parked and has the senders {senders}")

    def _look_at_order(self, name: str, number: int, key: str) -> None:
        """What is got for the first time comes after all that was got before it."""
        line = self.lines.setdefault((name, "" if ORDERED.get(name) is True else key), [])
        if name in ORDERED and number not in line:
            if line and number < line[-1]:
                self.wrong.append(f"{name} got {number} of {key} after {line[-1]}")
            line.append(number)


class History:
    """A fleet and what happens to it. `log` tells it, to read when it ends badly."""

    def __init__(self, sql: Sql, dsn: str, random: Random) -> None:
        self.sql, self.dsn, self.random = sql, dsn, random
        self.network = Network()
        self.log: list[str] = []
        self.is_orderly = True  # nobody has died or frozen, so nothing comes twice
        self._numbers = 0
        self._events = 0

    @property
    def live(self) -> list[Member]:
        return self.network.members

    def files(self) -> Config:
        """Some endpoints, some of them inactive, and the one that all have."""
        names = ["always", *(name for name in CAPS if name != "always" and self.random.random() < 0.6)]
        tables = {
            name: {
                "url": f"https://{name}.example.com/",
                "max_in_flight": CAPS[name],
                "ordered": ORDERED.get(name, False),
                "timeout": "1s",
                "active": name == "always" or self.random.random() < 0.85,
            }
            for name in names
        }
        return configuration(tables, delivery={"source": f"https://{self.random.choice(['here', 'there'])}"})

    async def play(self, moves: int, group: asyncio.TaskGroup) -> None:
        """Let so many things happen."""
        await self._join(group)
        calm = ["emit", "emit", "join", "stop", "reload", "reload", "refuse", "fail", "heal", "slow", "pause", "resume"]
        possible = calm if self.random.random() < 0.4 else [*calm, "die", "die", "freeze", "thaw"]
        for _ in range(moves):
            move = self.random.choice(possible)
            await getattr(self, f"_{move}")(group)
            await asyncio.sleep(self.random.choice([0.0, 0.01, 0.05, 0.2, PACE.beat, DEAD_AFTER]))

    def _say(self, what: str) -> None:
        self.log.append(f"{asyncio.get_running_loop().time():.2f} {what}")

    def _some(self) -> Member | None:
        return self.random.choice(self.live) if self.live else None

    async def _join(self, group: asyncio.TaskGroup) -> None:
        if len(self.live) >= MOST:
            return
        self._numbers += 1
        member = Member(self._numbers, self.files(), self.dsn, self.network)
        token = _member.set(member)
        member.task = group.create_task(member.daemon.run())
        _member.reset(token)
        self._say(f"{member.number} joins with {sorted(member.has)} of {sorted(member.names)}")
        async with asyncio.timeout(UNTIL_SETTLED):
            await member.ready.wait()
        self._say(f"{member.number} is daemon {member.id}")
        self.live.append(member)

    async def _die(self, _: asyncio.TaskGroup) -> None:
        if (member := self._some()) is not None:
            self._say(f"{member.number} dies")
            self.is_orderly = False
            self.live.remove(member)
            member.task.cancel()
            await asyncio.wait([member.task])

    async def _stop(self, _: asyncio.TaskGroup) -> None:
        if (member := self._some()) is not None and member.thawed.is_set():
            self._say(f"{member.number} stops")
            self.live.remove(member)
            member.daemon.stop()
            await asyncio.wait([member.task])

    async def _reload(self, _: asyncio.TaskGroup) -> None:
        if (member := self._some()) is not None and member.thawed.is_set():
            member.config = self.files()
            self._say(f"{member.number} reloads: {sorted(member.has)} of {sorted(member.names)}")
            member.daemon.reload()

    async def _refuse(self, _: asyncio.TaskGroup) -> None:
        if (member := self._some()) is not None and not member.daemon._reload_wanted.is_set():
            self._say(f"{member.number} refuses a reload")
            member.refuses = True
            member.daemon.reload()
            await asyncio.sleep(5 * PACE.look)
            member.refuses = False
            member.daemon.reload()  # what it refused may have been one that was asked for before

    async def _freeze(self, _: asyncio.TaskGroup) -> None:
        if (member := self._some()) is not None:
            self._say(f"{member.number} freezes")
            self.is_orderly = False
            member.thawed.clear()

    async def _thaw(self, _: asyncio.TaskGroup) -> None:
        for member in self.live:
            member.slow_at = asyncio.get_running_loop().time()
            member.thawed.set()
        self._say("all thaw")

    async def _emit(self, _: asyncio.TaskGroup) -> None:
        events = self.random.choice([1, 10, 60])
        self._say(f"{events} events")
        await self.sql.execute(
            """INSERT INTO webhookd.outbox (type, payload, ordering_key)
               SELECT 'x', json_build_object('n', n, 'key', n % 3), n % 3 FROM generate_series($1::int, $2::int) n""",
            self._events + 1,
            self._events + events,
        )
        self._events += events

    async def _fail(self, _: asyncio.TaskGroup) -> None:
        self.network.fails = {name for name in CAPS if self.random.random() < 0.4}
        self._say(f"failing: {sorted(self.network.fails)}")

    async def _heal(self, _: asyncio.TaskGroup) -> None:
        self.network.fails = set()
        self.network.slow = set()
        self._say("all are well")

    async def _slow(self, _: asyncio.TaskGroup) -> None:
        self.network.slow = {name for name in CAPS if self.random.random() < 0.4}
        self._say(f"slow: {sorted(self.network.slow)}")

    async def _pause(self, _: asyncio.TaskGroup) -> None:
        self._say("some are paused")
        await self.sql.execute(
            "SELECT webhookd.pause(ARRAY(SELECT id FROM webhookd.endpoint WHERE name = ANY($1)))",
            [name for name in CAPS if self.random.random() < 0.3],
        )

    async def _resume(self, _: asyncio.TaskGroup) -> None:
        self._say("all are resumed")
        await self.sql.execute("SELECT webhookd.resume(ARRAY(SELECT id FROM webhookd.endpoint))")

    # What must be true when nothing more happens.

    async def judge(self, group: asyncio.TaskGroup) -> None:
        """Wait for each of the promises; AssertionError when one is not kept."""
        await self._thaw(group)
        if not self.live:
            await self._join(group)
        await self._holds(self._everybody_has_a_sender, "a sender for whatever is owed something")
        await self._resume(group)
        await self._heal(group)
        await self._emit(group)
        await self._holds(self._nothing_is_owed, "everything to be sent that can be")
        await self._holds(self._shares_add_up, "the shares to add up to the limits")
        await self._holds(self._removed_is_what_nobody_names, "the daemons to agree about what is removed")
        self.network.peaks.clear()
        await self._emit(group)
        await self._holds(self._nothing_is_owed, "the last events")
        if not any(member.may_be_taken_for_dead for member in self.live):
            assert all(self.network.peaks[name] <= cap for name, cap in CAPS.items()), self.network.peaks
        assert await self.sql.fetch(MISSING) == []
        if self.is_orderly and not any(member.may_be_taken_for_dead for member in self.live):
            assert await self.sql.fetch(TWICE) == []
        assert not self.network.wrong, self.network.wrong[:5]

    async def _holds(self, condition: Any, what: str) -> None:
        began = asyncio.get_running_loop().time()
        try:
            await until(condition, what, UNTIL_SETTLED, interval=0.02)
        except AssertionError:
            await self._picture()
            raise
        self._say(f"after {(asyncio.get_running_loop().time() - began) / PACE.beat:.1f} heartbeats: {what}")

    async def _picture(self) -> None:
        """Say how things stand."""
        for query in PICTURE:
            self.log += [str(dict(row)) for row in await self.sql.fetch(query)]
        for member in self.live:
            told = member.dispatcher._limits.shares
            self._say(f"{member.number} is {member.id} and has {member.shares()}, told {told}")
            for queue in member.dispatcher._queues.values():
                counts = f"{len(queue.waiting)} waiting, {len(queue.ready)} ready, {len(queue.flying)} flying"
                more = (
                    f"limit {queue.limit}, {queue.standing}, until {queue.until():.1f}, {queue.host.flying} at its host"
                )
                self._say(
                    f"  {queue.endpoint.name}: {counts}, {more}; {member.dispatcher.claimable(queue.endpoint.id)}"
                )
            self._say(f"  room {member.dispatcher.room}, on hold {member.dispatcher._lanes._on_hold}")

    def _having(self, name: str) -> list[Member]:
        return [member for member in self.live if name in member.has]

    async def _everybody_has_a_sender(self) -> bool:
        rows = await self.sql.fetch(PARKED)
        return all(row["owner"] in {m.id for m in able} for row in rows if (able := self._having(row["name"])))

    async def _nothing_is_owed(self) -> bool:
        if await self.sql.fetchval(IN_HAND):
            return False
        owed = {row["name"] for row in await self.sql.fetch(OWED)}
        return not any(self._having(name) for name in owed)

    async def _shares_add_up(self) -> bool:
        shares: Mapping[Member, Mapping[str, tuple[int, Feed]]] = {member: member.shares() for member in self.live}
        for name, cap in CAPS.items():
            able = self._having(name)
            if any(name not in shares[member] for member in able):
                return False  # a reload is under way
            # Of what keeps an order one has all, as of all that is parked.
            having = [member for member in able if name not in ORDERED or shares[member][name][1] is Feed.CURSOR]
            if able and sum(shares[member][name][0] for member in having) != cap:
                return False
        return True

    async def _removed_is_what_nobody_names(self) -> bool:
        named = set().union(*(member.names for member in self.live))
        rows = await self.sql.fetch("SELECT name FROM webhookd.endpoint WHERE removed_at IS NULL")
        return {row["name"] for row in rows} == named

    def told(self) -> str:
        return "\n".join(self.log)


PARKED = """
SELECT e.name, p.owner FROM webhookd.parked p JOIN webhookd.endpoint e ON e.id = p.endpoint_id
 WHERE p.reason <> 'disabled' AND e.removed_at IS NULL
   AND p.next_batch < COALESCE(p.to_batch, (SELECT max(id) + 1 FROM webhookd.batch))"""
OWED = """
SELECT e.name FROM webhookd.endpoint e
 WHERE EXISTS (SELECT FROM webhookd.parked p WHERE p.endpoint_id = e.id
                  AND (e.spec ->> 'ordered' = 'false'  -- else it is always parked
                       OR p.next_batch < COALESCE(p.to_batch, (SELECT max(id) + 1 FROM webhookd.batch))))
    OR EXISTS (SELECT FROM webhookd.backlog b WHERE b.endpoint_id = e.id AND b.state IN ('retry', 'held'))"""
PICTURE = (
    "SELECT id, beat_at, stopped_at, endpoint_ids, inactive_ids, counts, now() FROM webhookd.daemon",
    "SELECT id, name, removed_at, paused_at, disabled_at FROM webhookd.endpoint",
    "SELECT * FROM webhookd.parked",
    "SELECT endpoint_id, state, count(*), min(due), max(attempts) FROM webhookd.backlog GROUP BY 1, 2",
    "SELECT id, owner, claims FROM webhookd.batch WHERE done_at IS NULL",
)
IN_HAND = """
SELECT EXISTS (SELECT FROM webhookd.batch WHERE done_at IS NULL)
    OR NOT EXISTS (SELECT FROM webhookd.batch
                    WHERE (SELECT max(id) FROM webhookd.outbox WHERE type = 'x') = ANY (outbox_ids))"""
MISSING = """
SELECT o.id FROM webhookd.outbox o WHERE o.type = 'x' AND NOT EXISTS (
  SELECT FROM webhookd.attempt a JOIN webhookd.endpoint e ON e.id = a.endpoint_id
   WHERE a.outbox_id = o.id AND a.ok AND e.name = 'always')"""
TWICE = """
SELECT outbox_id, endpoint_id, count(*) FROM webhookd.attempt
 WHERE ok GROUP BY outbox_id, endpoint_id HAVING count(*) > 1"""
