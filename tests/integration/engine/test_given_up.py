"""What was given up, and who is not sent to, is seen: in `health`, in `status`, and in the words of docs/states.md."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from typer.testing import CliRunner

from tests.integration.cli.test_listings import endpoint
from tests.integration.conftest import insert
from tests.integration.store.test_plans import counters, fill
from webhookd.cli.main import app

Sql = asyncpg.Connection
Ask = Callable[..., Awaitable[str]]
COLUMNS = "exhausted_deliveries, exhausted_ranges, failing_endpoints, disabled_endpoints, configurations"
SENT, NOT_SENT = ("busy", "failing"), ("disabled", "inactive", "paused", "removed")


@pytest.fixture
def ask(dsn: str) -> Ask:
    """What a command prints."""

    async def run(*arguments: str) -> str:
        found = await asyncio.to_thread(CliRunner().invoke, app, arguments, env={"WEBHOOKD_DSN": dsn})
        assert found.exit_code == 0, found.exception or found.output
        return found.stdout

    return run


async def health(sql: "Sql[asyncpg.Record]") -> tuple[int, ...]:
    row = await sql.fetchrow(f"SELECT {COLUMNS} FROM webhookd.health")
    assert row is not None
    return tuple(row)


@pytest.fixture
async def states(sql: "Sql[asyncpg.Record]") -> dict[str, int]:
    """An endpoint of each state, all of which are owed an event that is overdue; `busy` is healthy and parked."""
    numbers = {name: await endpoint(sql, name, active=name != "inactive") for name in (*SENT, *NOT_SENT)}
    await sql.execute("SELECT webhookd.park(ARRAY[$1::int], 'saturated', 5)", numbers["busy"])
    await sql.execute("SELECT webhookd.park(ARRAY[$1::int], 'failing', 5, '{12}', '{200}')", numbers["failing"])
    await sql.execute("SELECT webhookd.pause(ARRAY[$1::int])", numbers["paused"])
    await sql.execute("SELECT webhookd.disable($1, 'http_410')", numbers["disabled"])
    await sql.execute("UPDATE webhookd.endpoint SET removed_at = now() WHERE id = $1", numbers["removed"])
    for n, (name, number) in enumerate(numbers.items()):
        event_id = await insert(sql, event_id=name)
        await sql.execute(
            """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, attempts, due, last_error)
               SELECT $1, id, created_at, $3, now() - interval '1 min', $4 FROM webhookd.outbox WHERE event_id = $2""",
            number, event_id, 0 if name == "busy" else n, None if name == "busy" else "http_500",
        )  # fmt: skip
    return numbers


@pytest.mark.usefixtures("states")
async def test_status_says_of_each_endpoint_what_the_page_of_states_says(ask: Ask) -> None:
    found = {each["name"]: each for each in json.loads(await ask("status", "--json"))["endpoints"]}
    words = {name: each["state"] for name, each in found.items()}
    assert words == {"busy": "active", **{name: name for name in ("failing", *NOT_SENT)}}
    due = {name: each["next_try_seconds"] for name, each in found.items()}
    assert [name for name, seconds in due.items() if seconds is not None] == list(SENT)
    assert due["busy"] < 0 < due["failing"] <= 200, "that of a failing one is its next probe"
    shown = {line.split()[0]: line for line in (await ask("status")).splitlines() if line.split()[:1]}
    for name in NOT_SENT:
        assert shown[name].split()[1] == name
        assert not re.search(r"live|now", shown[name])
    assert re.search(r"failing +failing .* in 3 min", shown["failing"])


@pytest.mark.usefixtures("states")
async def test_what_waits_for_a_healthy_endpoint_does_not_look_as_if_it_had_failed(ask: Ask) -> None:
    for command in ("status", "endpoints list"):
        document = json.loads(await ask(*command.split(), "--json"))
        found = {each["name"]: each["backlog"] for each in document["endpoints"]}
        assert (found["busy"]["waiting"], found["busy"]["retrying"]) == (1, 0)
        assert (found["failing"]["waiting"], found["failing"]["retrying"]) == (0, 1)
    assert re.search(r"\nowed +1 waiting", await ask("endpoints", "show", "busy"))
    assert re.search(r"\nowed +1 retrying", await ask("endpoints", "show", "paused"))


@pytest.mark.parametrize("name", NOT_SENT)
@pytest.mark.usefixtures("states")
async def test_whoever_is_not_sent_to_is_neither_fed_nor_tried_next(ask: Ask, name: str) -> None:
    shown = await ask("endpoints", "show", name)
    assert re.search(rf"\nstate +{name}\n", shown)
    assert re.search(r"\nfed +nothing is sent", shown)
    assert "live, from memory" not in shown
    (line,) = json.loads(await ask("deliveries", "--event", name, "--json"))["deliveries"]
    assert line["next_at"] is None


@pytest.mark.parametrize("name", SENT)
@pytest.mark.usefixtures("states")
async def test_whoever_is_sent_to_has_a_next_attempt(ask: Ask, name: str) -> None:
    assert re.search(r"\nfed +parked since ", await ask("endpoints", "show", name))
    (line,) = json.loads(await ask("deliveries", "--event", name, "--json"))["deliveries"]
    assert line["next_at"] is not None


@pytest.mark.usefixtures("states")
async def test_endpoints_that_do_not_work_are_problems(ask: Ask, sql: "Sql[asyncpg.Record]") -> None:
    assert await health(sql) == (0, 0, 1, 1, 0)
    shown = await ask("status")
    assert "problem      1 endpoint fails, and is probed now and then: failing\n" in shown
    assert "problem      1 endpoint is disabled until `webhookd enable`: disabled\n" in shown
    for n in range(4):
        other = await endpoint(sql, f"other{n}", "acme")
        await sql.execute("SELECT webhookd.park(ARRAY[$1::int], 'failing', 5, '{12}', '{200}')", other)
    assert (await health(sql))[2] == 5
    document = json.loads(await ask("status", "--json"))
    assert (
        "5 endpoints fail, and are probed now and then: failing, acme/other0, acme/other1 and 2 more"
        in document["problems"]
    )


async def test_who_is_removed_inactive_or_paused_counts_as_neither_failing_nor_disabled(
    sql: "Sql[asyncpg.Record]", states: dict[str, int]
) -> None:
    for column in ("paused_at", "disabled_at", "removed_at"):
        await sql.execute(f"UPDATE webhookd.endpoint SET {column} = now() WHERE id = $1", states["failing"])
        assert (await health(sql))[2] == 0
        assert (await health(sql))[3] == (2 if column == "disabled_at" else 1)
        await sql.execute(f"UPDATE webhookd.endpoint SET {column} = NULL WHERE id = $1", states["failing"])
    for name in ("failing", "disabled"):
        await sql.execute(
            """UPDATE webhookd.endpoint SET spec = '{"active": false, "url": "", "events": []}' WHERE id = $1""",
            states[name],
        )
    assert (await health(sql))[2:4] == (0, 0)


async def test_what_was_given_up_lately_is_a_problem(ask: Ask, sql: "Sql[asyncpg.Record]") -> None:
    assert "problem" not in await ask("status")
    await sql.execute(
        """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, attempts, due, state)
           SELECT 1, n, now(), 9, now() - n * interval '1 h', CASE n % 2 WHEN 0 THEN 'exhausted' ELSE 'rejected' END
             FROM generate_series(1, 40) n"""
    )
    await sql.execute("INSERT INTO webhookd.missed VALUES (1, 1, 5, 'exhausted'), (2, 1, 5, 'disabled')")
    await sql.execute("INSERT INTO webhookd.missed VALUES (3, 1, 5, 'exhausted', now() - interval '2 days')")
    assert (await health(sql))[:2] == (11, 1)
    shown = await ask("status")
    assert (
        "problem      11 deliveries were given up in the last 24 hours: `webhookd deliveries --state exhausted`"
        in shown
    )
    assert "problem      1 range of the log was given up in the last 24 hours, behind endpoints that failed" in shown
    document = json.loads(await ask("status", "--json"))
    assert document["last_day"] == {"exhausted_deliveries": 11, "exhausted_ranges": 1}


async def test_what_is_given_up_behind_a_failing_endpoint_ends_at_that_moment(sql: "Sql[asyncpg.Record]") -> None:
    """However long ago it was due, or its range began: `health` counts what was given up lately."""
    hook = await endpoint(sql, "hook")
    await sql.execute("SELECT webhookd.park(ARRAY[$1::int], 'failing', 5, '{3}', '{1}')", hook)
    await sql.execute(
        """INSERT INTO webhookd.batch (id, pos_xmax, outbox_ids, cut_at, done_at)
           SELECT n, '1', '{}', now() - interval '4 days' + n * interval '1 min', now() FROM generate_series(1, 3) n"""
    )
    await sql.execute(
        """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, attempts, due, clock_from)
           VALUES ($1, 1, now(), 1, now() - interval '2 days', now() - interval '4 days')""",
        hook,
    )
    await sql.execute("INSERT INTO webhookd.missed VALUES ($1, 0, 1, 'exhausted', now() - interval '2 days')", hook)
    before = "now() - interval '3 days'"
    ended = await sql.fetchval(f"SELECT webhookd.give_up($1, 5, 1, {before})", hook)
    assert ended == 2, "a row, and a range that is longer now"
    assert await sql.fetchval(f"SELECT webhookd.give_up($1, 5, 1, {before})", hook) == 0
    assert (await health(sql))[:2] == (1, 1)
    assert await sql.fetchval("SELECT count(*) FROM webhookd.missed") == 1


async def test_daemons_that_differ_are_counted(sql: "Sql[asyncpg.Record]") -> None:
    add = """INSERT INTO webhookd.daemon (id, host, version, config_hash, beat_at, stopped_at)
             VALUES ($1, 'h', '1', $2, now() - $3 * interval '1 s', CASE WHEN $4 THEN now() END)"""
    for n, (config, ago, stopped) in enumerate((("aaa", 0, False), ("bbb", 60, False), ("ccc", 0, True)), start=1):
        await sql.execute(add, n, config, ago, stopped)
    assert (await health(sql))[4] == 1
    await sql.execute(add, 4, "ddd", 0, False)
    assert (await health(sql))[4] == 2


@pytest.mark.parametrize("analyzed", [False, True])
async def test_a_monitoring_system_costs_no_look_at_all_that_is_owed(
    sql: "Sql[asyncpg.Record]", analyzed: bool
) -> None:
    await fill(sql, 1_000, 100_000)
    await sql.execute(
        """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, attempts, due, state)
           SELECT 3, n, now(), 9, now() - n * interval '1 min', 'exhausted' FROM generate_series(1, 20000) n"""
    )
    if analyzed:
        await sql.execute("ANALYZE")
    before = await counters(sql)
    assert (await health(sql))[0] == 24 * 60 - 1
    after = await counters(sql)
    assert after == before, "nothing was read from one end to the other"
