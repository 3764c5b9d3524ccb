"""A standby that lagged becomes the primary: ids are given out again, and what was known of them says nothing now."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.conftest import connected, open_directory
from tests.fault.fleet import Fleet
from tests.fault.pooler import PROGRAM, Pooler
from tests.fault.proxy import Proxy
from tests.fault.standby import Pair, replicated
from tests.fault.verdict import ROLES, WRITTEN, Verdict, judge, wait_until_settled
from tests.fault.writers import Connection, Writers, events_of, insert
from tests.integration.conftest import eventually
from tests.waiting import until
from webhookd.errors import Moved
from webhookd.store.database import Database
from webhookd.store.migrations import migrate
from webhookd.store.results import Results

DAEMONS = ROLES[:2]
HELD = 100  # events that are in flight when the primary dies
MORE = 150  # than those: a sequence goes on up to 32 later, of which its standby was told beforehand
# In the pooler's log: a daemon was let go, and had not left by itself.
BROKEN = re.compile(r" C-\S+: postgres/daemon_.* closing because: (?!client ).*")
LOAD: Mapping[str, Mapping[str, Any]] = {
    "healthy": {"retry": {"schedule": ["300ms", "1s"]}},
    "flaky": {"retry": {"schedule": ["300ms", "1s"]}},
    "slow": {"retry": {"schedule": ["300ms", "1s"]}},
}
needs_pgbouncer = pytest.mark.skipif(not Path(PROGRAM).exists(), reason="Debian's pgbouncer is not installed")


@pytest.fixture
async def pair(version: int) -> AsyncIterator[Pair]:
    """A primary that webhookd lives on, and its standby."""
    with open_directory() as directory:
        async with replicated(directory, version) as made:
            await migrate(made.primary)
            yield made


@pytest.fixture
def dsn(pair: Pair) -> str:
    """The database that daemons and writers begin on."""
    return pair.primary


@pytest.fixture
async def proxy(pair: Pair) -> AsyncIterator[Proxy]:
    """What the daemons take for the database, wherever it is."""
    async with Proxy(pair.primary) as made:
        yield made


class Way(Protocol):
    """What the daemons take for the database, wherever it is."""

    target: str

    def dsn(self, role: str) -> str:
        """How to connect."""


class Switch(Pooler):
    """A pooler that is led to another server between two transactions, while its clients stay connected."""

    @property
    def target(self) -> str:
        """The server behind it."""
        return self._server

    @target.setter
    def target(self, dsn: str) -> None:
        file = self._directory / "ini"
        before, self._server = self._server, parse_qs(urlsplit(dsn).query)["host"][0]
        file.write_text(file.read_text().replace(before, self._server))
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Log:
    """What a server knows: its events, and which ids they and their batches have."""

    events: Mapping[str, str]  # payloads by event id
    ids: Mapping[int, str]  # event ids
    batches: Mapping[int, int]  # nonces
    ended: frozenset[int]  # batches
    daemons: frozenset[int]

    @classmethod
    async def of(cls, sql: Connection) -> "Log":
        rows = await sql.fetch(WRITTEN)
        return cls(
            {row["event_id"]: row["payload"] for row in rows},
            {row["id"]: row["event_id"] for row in rows},
            {row["id"]: row["nonce"] for row in await sql.fetch("SELECT id, nonce FROM webhookd.batch")},
            frozenset(row["id"] for row in await sql.fetch("SELECT id FROM webhookd.batch WHERE done_at IS NOT NULL")),
            frozenset(row["id"] for row in await sql.fetch("SELECT id FROM webhookd.daemon")),
        )

    def reused(self, other: "Log") -> tuple[int, int]:
        """How many ids of events and of batches mean something else there."""
        events = sum(other.ids.get(id_, event) != event for id_, event in self.ids.items())
        return events, sum(other.batches.get(id_, nonce) != nonce for id_, nonce in self.batches.items())


@asynccontextmanager
async def failed_over(pair: Pair, way: Way) -> AsyncIterator[tuple[Connection, Log]]:
    """Let the standby take over, if need be from a primary that still runs; a connection to it, and what it knew."""
    async with connected(pair.standby) as sql:
        known = await Log.of(sql)  # before the promotion: it can be read, and nobody can have joined it
        await pair.promote()
        way.target = pair.standby
        yield sql, known


async def late_ends(sql: Connection, promoted: Log) -> int:
    """Batches that were ended on the new primary by those who knew only the old one."""
    count: int = await sql.fetchval(
        "SELECT count(*) FROM audit.ended WHERE owner = ANY ($1) AND batch_id <> ALL ($2)",
        promoted.daemons,
        promoted.ended,
    )
    return count


async def new_lives(sql: Connection, promoted: Log) -> list[str]:
    """The roles of the daemons that have joined the new primary."""
    rows = await sql.fetch("SELECT role FROM audit.daemon WHERE id <> ALL ($1) ORDER BY role", promoted.daemons)
    return [row["role"] for row in rows]


@pytest.mark.parametrize(
    "early",
    [False, pytest.param(True, marks=pytest.mark.long)],
    ids=["when_it_is_the_primary", "while_it_is_a_standby"],
)
async def test_every_event_of_the_new_primary_is_delivered(
    processes: Fleet, watched: Connection, pair: Pair, proxy: Proxy, seed: int, early: bool
) -> None:
    processes.configure(LOAD)
    for role in DAEMONS:
        await processes.start(role, dsn=proxy.dsn(role))
    receiver = processes.receiver
    before = Writers(pair.primary, seed)
    async with asyncio.TaskGroup() as load:
        load.create_task(before.run())
        await until(lambda: receiver.count("healthy") > 100, "the load flows")
        await pair.lag()
        kept = len(before.committed)
        await until(lambda: len(before.committed) > kept + 150, "there is much to lose")
        before.stop()
    written = before.committed | await insert(watched, events_of(0, HELD))
    await until(lambda: receiver.count("healthy") > kept + 100, "some of it is delivered")
    lost = await Log.of(watched)

    if early:
        proxy.cut()
        proxy.target = pair.standby
        proxy.heal()
    await pair.crash()
    async with failed_over(pair, proxy) as (sql, promoted):
        after = Writers(pair.standby, seed, first=10)
        async with asyncio.TaskGroup() as load:
            load.create_task(after.run())
            await until(
                lambda: len(after.committed) > len(lost.events) - len(promoted.events), "ids have come again", 20
            )
            after.stop()
        receiver.heal()
        settled = await wait_until_settled(sql)
        now = await Log.of(sql)
        kept_ones = {id_: text for id_, text in written.items() if id_ in promoted.events}
        gone = {id_: text for id_, text in written.items() if id_ not in promoted.events}
        receipts = receiver.receipts()
        verdict = await judge(sql, kept_ones | after.committed, receipts, list(LOAD), gone=gone)
        reused = lost.reused(now)
        delivered = len({receipt.id for receipt in receipts if receipt.status == 200} & gone.keys())
        late, lives = await late_ends(sql, promoted), await new_lives(sql, promoted)
    print(f"lost {len(gone)}, of them delivered {delivered}; ids again {reused}; kept {len(kept_ones)}: {verdict}")  # noqa: T201
    assert reused[0] > 100
    assert reused[1] > 0
    assert delivered > 0
    assert settled, processes.log()
    assert verdict.faults <= {"unexplained"}, processes.log()  # what was written down is lost with the old primary
    assert late == 0
    assert lives == [*DAEMONS], "each began anew, once"
    assert all(daemon.process.returncode is None for daemon in processes.daemons.values()), "in the same process"


async def held(
    processes: Fleet, old: Connection, pair: Pair, way: Way, *arguments: str, answered: str
) -> tuple[Verdict, int]:
    """Events are in flight when another server takes over; the judgement, and how many batches were ended late."""
    processes.configure({"hold": {"timeout": "60s", "max_in_flight": 500}})
    receiver = processes.receiver
    for role in DAEMONS:
        await processes.start(role, *arguments, dsn=way.dsn(role))
    await pair.lag()
    gone = await insert(old, events_of(0, HELD))
    await until(lambda: receiver.count("hold", 0) == HELD, "all are in flight")
    lost = await Log.of(old)
    if isinstance(way, Proxy):
        await pair.crash()
    if answered == "while_away":
        receiver.release()
        await until(lambda: receiver.count("hold") == HELD, "all are answered")
    async with failed_over(pair, way) as (sql, promoted):
        events = await insert(sql, events_of(HELD, MORE))
        if answered == "afterwards":
            await until(lambda: {r.id for r in receiver.receipts()} >= events.keys(), "all of the others, too")
            receiver.release()
        settled = await wait_until_settled(sql)
        reused = lost.reused(await Log.of(sql))
        verdict = await judge(sql, events, receiver.receipts(), ["hold"], gone=gone)
        late = await late_ends(sql, promoted)
    print(f"ids again {reused}, late ends {late}: {verdict}")  # noqa: T201 - the figures are what the test is for
    assert promoted.events == {}
    assert reused[0] >= HELD - 32
    assert reused[1] > 0
    assert settled, processes.log()
    return verdict, late


@pytest.mark.parametrize("patience", ["60", "0.3"], ids=["in_the_batch", "leased_and_spilled"])
@pytest.mark.parametrize("answered", ["while_away", "afterwards"])
async def test_what_was_in_flight_says_nothing_about_those_who_have_its_ids_now(
    processes: Fleet, watched: Connection, pair: Pair, proxy: Proxy, answered: str, patience: str
) -> None:
    verdict, late = await held(processes, watched, pair, proxy, "--patience", patience, answered=answered)
    assert (verdict.faults, verdict.duplicates, late) == (set(), 0, 0), processes.log()


@needs_pgbouncer
async def test_a_pooler_that_leads_elsewhere_from_one_transaction_to_the_next(
    processes: Fleet, watched: Connection, pair: Pair
) -> None:
    async with Switch(pair.primary) as pooler:
        verdict, late = await held(processes, watched, pair, pooler, "--patience", "60", answered="afterwards")
        log = pooler.log()
    assert (verdict.faults, verdict.duplicates, late) == (set(), 0, 0), processes.log()
    assert not BROKEN.findall(log)


@needs_pgbouncer
async def test_a_flush_through_a_pooler_looks_where_it_is_written(pair: Pair) -> None:
    async with Switch(pair.primary) as pooler, Database(pooler.dsn("postgres")) as database:
        results = Results(database)
        database.place = (await database.fetch_row("SELECT webhookd.place()"))[0]
        await results.record(1, [], [], [])
        await pair.promote()
        pooler.target = pair.standby

        async def moved() -> bool:
            try:
                await results.record(1, [], [], [])
            except Moved:
                return True
            return False

        await eventually(moved, "the pooler leads to the other server, and the flush notices")


@pytest.mark.parametrize("answered", ["while_away", "afterwards"])
async def test_daemons_that_do_not_notice_are_caught(
    processes: Fleet, watched: Connection, pair: Pair, proxy: Proxy, answered: str
) -> None:
    arguments = ("--patience", "60", "--broken", "no_place")
    verdict, late = await held(processes, watched, pair, proxy, *arguments, answered=answered)
    assert "phantom" in verdict.faults
    assert late > 0
