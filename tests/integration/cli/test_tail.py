"""`webhookd tail`: each attempt once, when it is recorded, whatever the order; as lines and as documents."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from tests.integration.cli.test_cli import PLAIN, fails, webhookd
from tests.integration.cli.test_listings import attempt, endpoint
from tests.integration.conftest import Sql, insert
from tests.waiting import HANGS
from webhookd.cli.tail import LATE, Tail
from webhookd.errors import StoreUnavailable
from webhookd.store.database import Database
from webhookd.store.listings import NOTHING, Listings


@asynccontextmanager
async def tailing(dsn: str, *options: str, trouble: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    """The command, which has to end on Ctrl-C with 0, and has said nothing but perhaps that there was trouble."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "webhookd", "tail", *options,
        env={**PLAIN, "WEBHOOKD_DSN": dsn}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(HANGS):
            _, said = await process.communicate()
        assert process.returncode == 0
        assert said == b"" or (trouble and said.decode().startswith(trouble))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(HANGS):
        return (await process.stdout.readline()).decode().rstrip("\n")


async def numbers(found: Tail) -> list[tuple[int, int]]:
    return [(row.event.id, row.attempt) for row in await found.look(1_000)]


async def test_each_attempt_is_found_once_when_its_transaction_is_over(sql: Sql, dsn: str) -> None:
    """Those that began first are often recorded last; and what another transaction writes is seen when it commits."""
    one = await endpoint(sql, "one")
    for event_id in ("a", "b", "c", "d"):
        await insert(sql, event_id=event_id)
    other = await asyncpg.connect(dsn)
    try:
        async with Database(dsn, size=1) as database:
            found = Tail(database, None, failed=False, responses=False)
            assert await numbers(found) == []
            open_ = other.transaction()
            await open_.start()
            await attempt(other, "a", one)  # began before all others
            await attempt(sql, "b", one)
            assert await numbers(found) == [(2, 1)]
            await attempt(sql, "c", one)
            await attempt(sql, "c", one, 2)
            assert await numbers(found) == [(3, 1), (3, 2)]
            assert await numbers(found) == []
            await open_.commit()
            await attempt(sql, "d", one)
            assert await numbers(found) == [(1, 1), (4, 1)]
            assert await numbers(found) == []
    finally:
        await other.close()


async def test_what_was_rolled_back_never_comes(sql: Sql, dsn: str) -> None:
    one = await endpoint(sql, "one")
    await insert(sql, event_id="a")
    async with Database(dsn, size=1) as database:
        found = Tail(database, None, failed=False, responses=False)
        transaction = sql.transaction()
        await transaction.start()
        await attempt(sql, "a", one)
        assert await numbers(found) == []
        await transaction.rollback()
        assert await numbers(found) == []


async def test_it_begins_with_the_newest_and_knows_endpoints_that_come_later(sql: Sql, dsn: str) -> None:
    one = await endpoint(sql, "one")
    for number, event_id in enumerate(("a", "b", "c"), 1):
        await insert(sql, event_id=event_id)
        await attempt(sql, event_id, one, number, 500)
    async with Database(dsn, size=1) as database:
        newest = await Listings(database).recorded(NOTHING, None, 2, LATE, failed=False, responses=False)
        assert ([row.event.event_id for row in newest.rows], newest.left_out) == (["b", "c"], 1)
        found = Tail(database, None, failed=False, responses=False)
        assert await found.look(0) == []
        two = await endpoint(sql, "two", "acme")
        await attempt(sql, "a", two)
        (row,) = await found.look(10)
        assert found.names[row.endpoint_id] == ("acme", "two")


async def began(sql: Sql, event_id: str, ago: str) -> None:
    await sql.execute(
        f"""UPDATE webhookd.attempt SET at = now() - interval '{ago}'
             WHERE outbox_id = (SELECT id FROM webhookd.outbox WHERE event_id = $1)""",
        event_id,
    )


@pytest.mark.parametrize("failed", [False, True])
async def test_one_that_ran_into_the_longest_timeout_is_found_and_one_of_a_wrong_clock_is_not(
    sql: Sql, dsn: str, failed: bool
) -> None:
    one = await endpoint(sql, "one")
    for event_id in ("slow", "future"):
        await insert(sql, event_id=event_id)
    async with Database(dsn, size=1) as database:
        found = Tail(database, None, failed=failed, responses=False)
        await found.look(10)
        async with sql.transaction():
            await attempt(sql, "slow", one, 1, None)
            await began(sql, "slow", "300.5 s")
            await attempt(sql, "future", one, 1, None)
            await began(sql, "future", "-20 d")
        assert await numbers(found) == [(1, 1)]


async def test_what_was_recorded_during_an_outage_is_found_however_long_it_was(
    sql: Sql, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await endpoint(sql, "one")
    await insert(sql, event_id="a")
    async with Database(dsn, size=1) as database:
        found = Tail(database, None, failed=False, responses=False)
        await found.look(10)
        async with sql.transaction():
            await attempt(sql, "a", one)
            await began(sql, "a", "2 h")
        assert found._looked_at is not None
        monkeypatch.setattr(found, "_looked_at", found._looked_at - 7_200)
        assert await numbers(found) == [(1, 1)]


async def test_what_is_found_is_not_lost_when_the_next_question_fails(
    sql: Sql, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await endpoint(sql, "one")
    await insert(sql, event_id="a")
    async with Database(dsn, size=1) as database:
        found = Tail(database, None, failed=False, responses=False)
        await found.look(10)
        await attempt(sql, "a", await endpoint(sql, "two"))

        async def gone(_: Listings) -> dict[int, tuple[str, str]]:
            raise StoreUnavailable("gone")

        with monkeypatch.context() as patch:
            patch.setattr(Listings, "names", gone)
            with pytest.raises(StoreUnavailable):
                await found.look(10)
        assert await numbers(found) == [(1, 1)]


async def test_an_erasure_brings_nothing_back(sql: Sql, dsn: str) -> None:
    one = await endpoint(sql, "one")
    await insert(sql, event_id="a")
    await attempt(sql, "a", one, 1, 500, b"Jane Doe")
    async with Database(dsn, size=1) as database:
        found = Tail(database, None, failed=False, responses=True)
        assert await numbers(found) == [(1, 1)]
        await sql.execute("UPDATE webhookd.attempt SET response = NULL")
        assert await numbers(found) == []


async def test_a_server_with_lower_numbers_is_told_and_gone_on_with(sql: Sql, dsn: str) -> None:
    one = await endpoint(sql, "one")
    await insert(sql, event_id="a")
    async with Database(dsn, size=1) as database:
        found = Tail(database, None, failed=False, responses=False)
        await found.look(10)
        found._since = "5000000000:5000000000:"
        await attempt(sql, "a", one)
        assert (await numbers(found), found.is_elsewhere) == ([], True)
        await attempt(sql, "a", one, 2)
        assert (await numbers(found), found.is_elsewhere) == ([(1, 2)], False)


async def test_of_too_many_the_newest_are_shown_and_the_others_counted(sql: Sql, dsn: str) -> None:
    one = await endpoint(sql, "one")
    await insert(sql, event_id="a")
    async with Database(dsn, size=1) as database:
        found = Tail(database, None, failed=False, responses=False)
        await found.look(10)
        for number in range(1, 8):
            await attempt(sql, "a", one, number)
        assert [row.attempt for row in await found.look(3)] == [5, 6, 7]
        assert found.left_out == 4
        assert (await numbers(found), found.left_out) == ([], 0)


async def test_lines_as_they_come(sql: Sql, dsn: str) -> None:
    one = await endpoint(sql, "one")
    await insert(sql, event_id="before")
    await attempt(sql, "before", one)
    await insert(sql, event_id="evil", type="order.created")
    async with tailing(dsn, "--show-response") as process:
        shown = (await line(process)).split()
        assert shown[1:] == ["200", "12", "ms", "one", "before", "order.created", "attempt", "1"]
        await attempt(sql, "evil", one, 2, 503, b"try\x1b[2J later\n")
        shown = (await line(process)).split()
        assert shown[1:] == ["503", "12", "ms", "one", "evil", "order.created", "attempt", "2"]
        assert await line(process) == r"  | try\x1b[2J later"


async def test_documents_of_one_endpoint_that_failed(sql: Sql, dsn: str) -> None:
    one, two = await endpoint(sql, "one"), await endpoint(sql, "two")
    await insert(sql, event_id="a")
    await attempt(sql, "a", two, 1, 500)
    async with tailing(dsn, "--json", "--failed", "--endpoint", "two", "--lines", "1") as process:
        assert json.loads(await line(process))["attempt"] == 1
        await attempt(sql, "a", one, 2, 500)
        await attempt(sql, "a", two, 3)
        await attempt(sql, "a", two, 4, None)
        found = json.loads(await line(process))
    assert {key: found[key] for key in ("event_id", "endpoint", "attempt", "ok", "code", "error")} == {
        "event_id": "a",
        "endpoint": "two",
        "attempt": 4,
        "ok": False,
        "code": None,
        "error": "timeout",
    }


async def test_it_goes_on_when_the_database_is_back(sql: Sql, dsn: str) -> None:
    one = await endpoint(sql, "one")
    await insert(sql, event_id="a")
    await attempt(sql, "a", one)
    async with tailing(dsn, trouble="webhookd: The database does not answer, since ") as process:
        assert "attempt 1" in await line(process)
        ours = "FROM pg_stat_activity WHERE application_name ~ 'webhookd' AND datname = current_database()"
        assert await sql.fetchval(f"SELECT count(pg_terminate_backend(pid)) {ours}") == 1
        await attempt(sql, "a", one, 2)
        assert "attempt 2" in await line(process)


@pytest.mark.parametrize("option", [("--endpoint", "nobody"), ("--endpoint", "")])
async def test_an_endpoint_that_is_not_there(dsn: str, option: tuple[str, str]) -> None:
    found = await asyncio.to_thread(webhookd, "tail", *option, env={"WEBHOOKD_DSN": dsn})
    fails(found, 1, "there is no endpoint")
