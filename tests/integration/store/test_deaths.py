"""How often daemons died with a delivery in hand is counted, and only that."""

from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from tests.endpoints import HOOK
from tests.integration.conftest import Receiver, Running, Sql, configuration, eventually, insert_many
from webhookd.model import Delivery, Event, Postponed, Result, Retry, Window
from webhookd.store.backlog import ALONE_AFTER, Backlog, Claimed
from webhookd.store.database import Database
from webhookd.store.parking import ParkingStore
from webhookd.store.results import Results

ME, OTHER, THIRD = 1, 2, 3


class Daemons:
    """Rows of the backlog, and daemons that claim them."""

    def __init__(self, sql: Sql, database: Database) -> None:
        self.sql = sql
        self._database = database

    async def claim(self, daemon: int, room: int = 100) -> list[Claimed]:
        """What it gets; the lease has run out at once."""
        return await Backlog(self._database, daemon, 15.0).claim([(1, room, -0.001, 60.0)])

    async def record(self, daemon: int, claimed: Claimed, outcome: Retry | Postponed) -> None:
        event = Event(claimed.event_id, "evt", datetime.now(UTC), "a", "", None, None, None, 2)
        delivery = Delivery(event, HOOK, None, claimed.attempts, 0.0, 0.0, 0.0, claimed.asked, claimed.deaths)
        await Results(self._database).record(daemon, [Result(delivery, None, outcome)], (), ())

    async def is_dead(self, daemon: int, *, by_beats: bool = False) -> None:
        change = "beat_at = now() - interval '16 s'" if by_beats else "stopped_at = now()"
        await self.sql.execute(f"UPDATE webhookd.daemon SET {change} WHERE id = $1", daemon)


@pytest.fixture
async def daemons(sql: Sql, dsn: str) -> AsyncIterator[Daemons]:
    """Three of them, and a row."""
    await sql.execute("INSERT INTO webhookd.daemon (id) SELECT generate_series(1, 3)")
    await rows(sql, 1)
    async with Database(dsn) as database:
        yield Daemons(sql, database)


async def rows(sql: Sql, *events: int, deaths: int = 0) -> None:
    await sql.execute(
        "INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, due, deaths)"
        " SELECT 1, id, now(), now() - id * interval '1 ms', $2 FROM unnest($1::bigint[]) id",
        events,
        deaths,
    )


@pytest.mark.parametrize("by_beats", [False, True])
async def test_who_died_with_it_is_counted(daemons: Daemons, by_beats: bool) -> None:
    assert [row.deaths for row in await daemons.claim(OTHER)] == [0]
    await daemons.is_dead(OTHER, by_beats=by_beats)
    assert [row.deaths for row in await daemons.claim(ME)] == [1]
    assert [row.deaths for row in await daemons.claim(ME)] == [1]  # a claim that was forgotten says nothing
    assert [row.deaths for row in await daemons.claim(THIRD)] == [1]  # nor one of a daemon that lives
    await daemons.sql.execute("DELETE FROM webhookd.daemon WHERE id = $1", THIRD)  # forgotten long after its death
    assert [row.deaths for row in await daemons.claim(ME)] == [2]


async def test_a_result_ends_the_count_and_the_lease(daemons: Daemons) -> None:
    await daemons.claim(OTHER)
    await daemons.is_dead(OTHER)
    (claimed,) = await daemons.claim(ME)
    await daemons.record(ME, claimed, Postponed(-0.001))
    assert await daemons.sql.fetchval("SELECT owner IS NULL FROM webhookd.backlog")
    await daemons.is_dead(ME)
    (claimed,) = await daemons.claim(THIRD)
    assert claimed.deaths == 1  # it was put off, which proves nothing
    await daemons.record(THIRD, claimed._replace(deaths=0), Retry(-0.001))
    assert [row.deaths for row in await daemons.claim(THIRD)] == [0]


async def test_of_suspects_there_is_one_at_a_time_and_who_is_none_does_not_wait(daemons: Daemons) -> None:
    await rows(daemons.sql, *range(10, 20), deaths=ALONE_AFTER + 1)
    await rows(daemons.sql, *range(20, 25), deaths=ALONE_AFTER)
    await rows(daemons.sql, 30, deaths=ALONE_AFTER + 2)
    taken: set[int] = set()
    for _ in range(10):
        claimed = await daemons.claim(ME)
        suspects = [row.event_id for row in claimed if row.deaths > ALONE_AFTER]
        assert len(suspects) == 1
        assert {row.event_id for row in claimed} == {1, *range(20, 25), *suspects}
        taken.update(suspects)
        await daemons.sql.execute("DELETE FROM webhookd.backlog WHERE outbox_id = $1", suspects[0])
    assert taken == set(range(10, 20))  # and the most suspicious one last
    assert 30 in {row.event_id for row in await daemons.claim(ME)}


async def test_suspects_wait_while_there_is_one_in_hand(daemons: Daemons, dsn: str) -> None:
    await rows(daemons.sql, *range(10, 20), deaths=ALONE_AFTER + 1)
    async with Database(dsn) as database:
        claimed = await Backlog(database, ME, 15.0).claim([(1, 100, 45.0, 60.0)], suspects=False)
    assert [row.event_id for row in claimed] == [1]


async def test_each_endpoint_has_its_part_of_a_claim(daemons: Daemons, dsn: str) -> None:
    """However much those are owed that come before it; and what is left over is for whoever can take it."""
    await daemons.sql.execute(
        "INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, due)"
        " SELECT p, id, now(), now() FROM generate_series(11, 60) p,"
        " generate_series(1, CASE WHEN p = 60 THEN 3 ELSE 200 END) id"
    )
    wanted = [(endpoint, 100, 45.0, 60.0) for endpoint in range(11, 61)]
    async with Database(dsn) as database:
        claimed = await Backlog(database, ME, 15.0).claim(wanted)
    counts = Counter(row.endpoint_id for row in claimed)
    assert len(claimed) == len({(row.endpoint_id, row.event_id) for row in claimed}) == 500
    assert counts[60] == 3
    assert counts[11] == 10 + 7
    assert all(counts[endpoint] == 10 for endpoint in range(12, 60))


async def test_daemons_that_died_as_the_sender_of_a_cursor_are_counted_until_it_moves(
    daemons: Daemons, dsn: str
) -> None:
    sql = daemons.sql
    await sql.execute("INSERT INTO webhookd.endpoint (tenant, name, source, spec) VALUES ('', 'hook', 'file', '{}')")
    await sql.execute(
        "INSERT INTO webhookd.parked (endpoint_id, from_batch, next_batch, reason, owner) VALUES (1, 1, 1, 'x', $1)", ME
    )
    async with Database(dsn) as database:
        store = ParkingStore(database)

        async def taken_by(daemon: int) -> int:
            assert await store.take(daemon, [1], 1e12, 15.0) == 1
            (row,) = (await store.parking()).rows
            return row.deaths

        await store.let_go(ME)
        assert await taken_by(OTHER) == 0
        await daemons.is_dead(OTHER, by_beats=True)
        assert await taken_by(THIRD) == 1
        await daemons.is_dead(THIRD)
        assert await taken_by(ME) == 2
        (row,) = (await store.parking()).rows
        await Results(database).record(ME, [], (), [Window(1, 1, row.epoch, 1, 5)])
        (row,) = (await store.parking()).rows
        assert (row.next_pos, row.deaths) == (5, 0)


async def test_a_straggler_counts_as_in_hand(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    healed = receiver.hangs("hook")
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        await insert_many(sql, 1)

        async def leased() -> bool:
            return bool(await sql.fetchval("SELECT EXISTS (SELECT FROM webhookd.backlog WHERE owner = 1)"))

        await eventually(leased, "its lease")
        healed.set()
