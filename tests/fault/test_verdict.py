"""What may come twice, as it is judged: what was taken from who looked dead, or had a lease that was over."""

import pytest

from tests.fault.fleet import Receipt
from tests.fault.verdict import Connection, unexplained
from tests.integration.conftest import insert
from webhookd.store.backlog import Backlog
from webhookd.store.database import Database
from webhookd.store.statements import QUERIES

ADOPT: tuple[object, ...] = (0, 2, [], 1e11, 1.5, 20)  # by daemon 2, which may call others dead
CLAIM = [(1, 10, 0.0, 1.0)]  # for no time at all


@pytest.fixture
async def twice(watched: Connection) -> list[Receipt]:
    """An event of a batch that daemon 1 has, and two answers to it that lie an hour ahead."""
    for number in (1, 2):
        await watched.execute(
            "INSERT INTO webhookd.daemon (id, host, version, config_hash) VALUES ($1, '', '', '')", number
        )
    event_id = await insert(watched)
    await watched.fetch("SELECT * FROM webhookd.cut(10, 10, 1)")
    await watched.execute(
        "INSERT INTO webhookd.endpoint (id, tenant, name, source, spec) OVERRIDING SYSTEM VALUE"
        " VALUES (1, '', 'a', 'file', '{}')"
    )
    at: float = await watched.fetchval("SELECT extract(epoch FROM now())::float8 + 3600")
    return [Receipt("/a", event_id, 1, "", "", 200, at + n) for n in range(2)]


async def test_one_daemon_has_no_reason(watched: Connection, twice: list[Receipt]) -> None:
    assert await unexplained(watched, twice) == 1
    assert await unexplained(watched, twice[:1]) == 0


@pytest.mark.parametrize(("silent", "wrong"), [(60.0, 0), (0.0, 1)])
async def test_who_looked_dead_has_one(watched: Connection, twice: list[Receipt], silent: float, wrong: int) -> None:
    await watched.execute(
        "UPDATE webhookd.daemon SET beat_at = now() - $1::float8 * interval '1 s' WHERE id = 1", silent
    )
    if wrong:  # from the living, as no daemon of ours does it
        await watched.execute("UPDATE webhookd.batch SET owner = 2, claims = claims + 1 WHERE owner = 1")
    else:
        assert len(await watched.fetch(QUERIES["adopt"], *ADOPT)) == 1
    assert await unexplained(watched, twice) == wrong
    three = [*twice, twice[1]._replace(at=twice[1].at + 1)]
    assert await unexplained(watched, three) == wrong + 1, "one reason explains one"


async def test_what_was_taken_later_is_none(watched: Connection, twice: list[Receipt]) -> None:
    await watched.execute("UPDATE webhookd.daemon SET beat_at = now() - interval '1 min' WHERE id = 1")
    await watched.fetch(QUERIES["adopt"], *ADOPT)
    assert await unexplained(watched, [each._replace(at=each.at - 7200) for each in twice]) == 1


@pytest.mark.parametrize("claims", [1, 2])
async def test_a_lease_that_is_over_is_one(watched: Connection, dsn: str, twice: list[Receipt], claims: int) -> None:
    await watched.execute(
        "INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, attempts, due, clock_from)"
        " SELECT 1, id, created_at, 1, now(), now() FROM webhookd.outbox"
    )
    async with Database(dsn) as database:
        for _ in range(claims):
            assert len(await Backlog(database, 1, 15.0).claim(CLAIM)) == 1
    assert await unexplained(watched, twice) == (1 if claims == 1 else 0)
