"""What endpoints are owed and missed without a row of it: counted, listed, in the same words, at a bounded cost."""

import json
import re
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.integration.cli.test_cli import webhookd
from tests.integration.cli.test_commands import endpoint as spec
from tests.integration.cli.test_commands import written
from tests.integration.cli.test_listings import asked, attempt, endpoint, owe, rows
from tests.integration.conftest import as_user, insert
from tests.integration.engine.test_given_up import Ask, ask
from tests.integration.store.test_plans import counters, fill
from tests.stopwatch import worked

Sql = asyncpg.Connection
__all__ = ["ask"]
MOST_MS = 150.0


HOLD = """
INSERT INTO webhookd.batch (id, pos_xmax, outbox_ids, lo, hi, owner, claims, done_at)
SELECT (SELECT max(id) + 1 FROM webhookd.batch), pg_snapshot_xmax(pg_current_snapshot()), array_agg(id ORDER BY id),
       min(created_at), max(created_at), 1, 1, now() FROM webhookd.outbox WHERE event_id = ANY ($1)"""


async def logged(sql: "Sql[asyncpg.Record]", *ids: str, **columns: str) -> None:
    """Events, and the batch that holds them."""
    for event_id in ids:
        await insert(sql, event_id=event_id, **columns)
    await sql.execute(HOLD, list(ids))


async def states(sql: "Sql[asyncpg.Record]", event_id: str) -> dict[str | None, tuple[str, str | None]]:
    found = await sql.fetch("SELECT endpoint, state, last_error FROM webhookd.event_status($1)", event_id)
    return {row["endpoint"]: (row["state"], row["last_error"]) for row in found}


async def counts(ask: Ask, name: str) -> dict[str, int]:
    """What `status` and `endpoints` count of an endpoint, in the same words."""
    (one,) = [each for each in (await asked(ask, "status"))["endpoints"] if each["name"] == name]
    (other,) = [each for each in (await asked(ask, "endpoints", "list"))["endpoints"] if each["name"] == name]
    shown = await asked(ask, "endpoints", "show", name)
    assert one["backlog"] == other["backlog"] == shown["backlog"]
    assert one["more"] == other["more"] == shown["more"]
    return {key: number for key, number in one["backlog"].items() if number}


async def test_what_a_parked_endpoint_is_owed_is_counted_and_listed(ask: Ask, sql: "Sql[asyncpg.Record]") -> None:
    dead, well, other = [await endpoint(sql, name, events=["order.*"]) for name in ("dead", "well", "other")]
    await sql.execute('UPDATE webhookd.endpoint SET spec = spec || \'{"events": ["bill.paid"]}\' WHERE id = $1', other)
    await logged(sql, "before", type="order.created")
    await attempt(sql, "before", dead)
    await sql.execute("SELECT webhookd.park($1, 'failing', 1, '{10}', '{60}')", [dead, other])
    await logged(sql, "a", "b", type="order.created")
    await logged(sql, "c", "d", type="order.status.changed")
    for event_id in "abcd":
        await attempt(sql, event_id, well)
    await attempt(sql, "a", dead, 1, 500)  # it was probed with that
    await owe(sql, "a", dead)
    assert await counts(ask, "dead") == {"retrying": 1, "parked": 3}
    assert await counts(ask, "other") == {}
    assert await states(sql, "b") == {"dead": ("parked", "failing"), "well": ("delivered", None)}
    assert await states(sql, "a") == {"dead": ("retrying", "http_500"), "well": ("delivered", None)}
    assert await states(sql, "before") == {"dead": ("delivered", None)}
    shown = {line[1]: line[-1] for line in rows(await ask("events"))}
    assert shown["b"] == shown["d"] == "1 delivered, 1 parked"
    assert (shown["a"], shown["before"]) == ("1 delivered, 1 retrying", "1 delivered")
    listed = (await asked(ask, "deliveries", "--endpoint", "dead"))["deliveries"]
    assert [(each["event_id"], each["state"]) for each in listed] == [
        ("d", "parked"), ("c", "parked"), ("b", "parked"), ("a", "retrying"), ("before", "delivered"),
    ]  # fmt: skip
    assert [line[:4] for line in rows(await ask("deliveries", "--state", "parked", "--limit", "2"))] == [
        ["d", "order.status.changed", "dead", "parked"],
        ["c", "order.status.changed", "dead", "parked"],
    ]
    page = await asked(ask, "deliveries", "--state", "parked", "--limit", "2")
    rest = await asked(ask, "deliveries", "--state", "parked", "--before", page["more"])
    assert [each["event_id"] for each in rest["deliveries"]] == ["b"]
    assert "owed         1 retrying, 3 parked\n" in await ask("endpoints", "show", "dead")
    (line,) = [line for line in rows(await ask("endpoints", "list")) if line[0] == "dead"]
    assert line[4] == "4"
    assert rows(await ask("deliveries", "--event", "c"))[0][2:4] == ["well", "delivered"]
    assert rows(await ask("deliveries", "--event", "c"))[1][2:4] == ["dead", "parked"]
    await attempt(sql, "c", dead)  # and its cursor is to come to that
    assert [line[2:4] for line in rows(await ask("deliveries", "--event", "c"))] == [
        ["well", "delivered"],
        ["dead", "delivered"],
    ]
    assert len(await sql.fetch("SELECT FROM webhookd.event_status('c')")) == 2


async def test_what_the_cursor_has_passed_is_not_parked(ask: Ask, sql: "Sql[asyncpg.Record]") -> None:
    hook = await endpoint(sql, "hook")
    await sql.execute("SELECT webhookd.park($1, 'saturated', 1)", [hook])
    await logged(sql, "a", "b", "c")
    await logged(sql, "d")
    await sql.execute("UPDATE webhookd.parked SET next_pos = 2")
    assert [(await states(sql, each)).get("hook", ("",))[0] for each in "abcd"] == ["", "", "parked", "parked"]
    assert await counts(ask, "hook") == {"parked": 2}
    await sql.execute("UPDATE webhookd.parked SET next_batch = next_batch + 1, next_pos = 0")
    assert await counts(ask, "hook") == {"parked": 1}
    await sql.execute("UPDATE webhookd.parked SET to_batch = next_batch")
    assert await counts(ask, "hook") == {}
    assert [line[-1] for line in rows(await ask("events"))] == ["unmatched"] * 4


async def test_who_subscribes_decides(ask: Ask, sql: "Sql[asyncpg.Record]") -> None:
    specs: dict[str, dict[str, Any]] = {
        "exact": {"events": ["a.b"]},
        "below": {"events": ["x.y", "a.*"]},
        "all": {"events": ["*", "a.*"]},
        "own": {"events": ["webhookd.*"]},
        "red": {"events": ["*"], "filter": {"colour": ["red"]}},
        "unicode": {"events": ["grün.日本"]},
        "acme/theirs": {"events": ["*"]},
        "*/any": {"events": ["*"]},
    }
    numbers = {}
    for label, keys in specs.items():
        tenant, _, name = label.rpartition("/")
        numbers[name] = await endpoint(sql, name, tenant, **keys)
    await sql.execute(
        "SELECT webhookd.park($1, 'failing', 1)", list(numbers.values())
    )  # tells of each but `own` itself
    await logged(sql, "1", type="a.b", metadata='{"colour": "red"}')
    await logged(sql, "2", type="a.b.c", metadata='{"colour": "blue"}')
    await logged(sql, "3", type="a.b", tenant="acme")
    await logged(sql, "4", type="a")
    await logged(sql, "5", type="grün.日本")
    told = [row[0] for row in await sql.fetch("SELECT event_id FROM webhookd.outbox WHERE own AND tenant = ''")]
    await sql.execute(HOLD, told)
    expected = {
        "1": {"exact", "below", "all", "red", "*/any"},
        "2": {"below", "all", "*/any"},
        "3": {"acme/theirs", "*/any"},
        "4": {"all", "*/any"},
        "5": {"all", "unicode", "*/any"},
    }
    for event_id, labels in expected.items():
        assert set(await states(sql, event_id)) == labels
    found = {row[0]: row[1] for row in await sql.fetch("SELECT endpoint_id, parked FROM webhookd.count_aside(10000)")}
    by_name = {name: found[number] for name, number in numbers.items()}
    own = len([each for each in told if "own" in await states(sql, each)])
    assert own == len(told) - 1  # all but what is about itself
    assert by_name == {
        "exact": 1, "below": 2, "all": 4, "own": own, "red": 1, "unicode": 1, "theirs": 1, "any": 5
    }  # fmt: skip


async def test_what_was_missed_is_counted_and_listed_with_the_reason(ask: Ask, sql: "Sql[asyncpg.Record]") -> None:
    hook, well = await endpoint(sql, "hook"), await endpoint(sql, "well", events=["a.b"])
    await endpoint(sql, "narrow", events=["x.y"])
    await sql.execute("SELECT webhookd.disable($1, 'http_410')", hook)
    await logged(sql, "a", "b", type="a.b")
    await logged(sql, "c", type="c.d")
    for event_id in "ab":
        await attempt(sql, event_id, well)
    for _ in range(2):  # while it is disabled, and when it is enabled
        assert await counts(ask, "hook") == {"missed": 3}
        assert await states(sql, "a") == {"hook": ("missed", "disabled"), "well": ("delivered", None)}
        assert await states(sql, "c") == {"hook": ("missed", "disabled")}
        shown = {line[1]: line[-1] for line in rows(await ask("events"))}
        assert (shown["a"], shown["c"]) == ("1 delivered, 1 missed", "1 missed")
        listed = (await asked(ask, "deliveries", "--state", "missed"))["deliveries"]
        assert [(each["event_id"], each["endpoint"], each["last"]["error"]) for each in listed] == [
            ("c", "hook", "disabled"), ("b", "hook", "disabled"), ("a", "hook", "disabled"),
        ]  # fmt: skip
        assert re.search(r"\nfailed +3 missed \(disabled\)\n", await ask("endpoints", "show", "hook"))
        await sql.execute("SELECT webhookd.enable($1)", [hook])
    await logged(sql, "d", type="e.f")
    assert await states(sql, "d") == {None: ("unmatched", None)}
    await sql.execute('UPDATE webhookd.endpoint SET spec = spec || \'{"events": ["x.y"]}\' WHERE id = $1', hook)
    assert await states(sql, "c") == {None: ("unmatched", None)}  # nobody was owed it, whoever was disabled then
    assert rows(await ask("events", "--type", "c.d"))[0][-1] == "unmatched"
    await sql.execute("UPDATE webhookd.missed SET reason = 'discarded'")
    assert await states(sql, "c") == {None: ("missed", "discarded")}
    assert rows(await ask("events", "--type", "c.d"))[0][-1] == "missed"


async def test_an_endpoint_that_is_removed_is_in_status_while_the_log_has_something_for_it(
    ask: Ask, sql: "Sql[asyncpg.Record]"
) -> None:
    hook = await endpoint(sql, "hook")
    await sql.execute("SELECT webhookd.park($1, 'failing', 1)", [hook])
    await logged(sql, "a")
    await sql.execute("UPDATE webhookd.endpoint SET removed_at = now()")
    assert await counts(ask, "hook") == {"parked": 1}
    await sql.execute("UPDATE webhookd.parked SET next_batch = next_batch + 1")
    assert (await asked(ask, "status"))["endpoints"] == []


async def test_explain_says_parked_and_missed_with_the_reason(
    dsn: str, sql: "Sql[asyncpg.Record]", tmp_path: Path
) -> None:
    hook, gone = await endpoint(sql, "hook"), await endpoint(sql, "gone")
    await sql.execute("SELECT webhookd.park($1, 'paused', 1)", [hook])
    await sql.execute("SELECT webhookd.disable($1, 'http_410')", gone)
    await logged(sql, "e")
    found = webhookd("explain", "e", "-c", written(tmp_path, spec("hook"), dsn=dsn)).stdout
    assert "  hook: parked (paused)\n" in found
    assert "  gone: missed (disabled)\n" in found


async def test_a_reader_counts_by_filters_that_it_may_not_read(granted: "Sql[asyncpg.Record]", dsn: str) -> None:
    sql = granted
    hook = await endpoint(sql, "hook", filter={"colour": ["red"]})
    await sql.execute("SELECT webhookd.park($1, 'failing', 1)", [hook])
    await logged(sql, "a", metadata='{"colour": "red"}')
    await logged(sql, "b", metadata='{"colour": "blue"}')
    await logged(sql, "c")
    reader = {"WEBHOOKD_DSN": as_user(dsn, "webhookd_reader")}
    status = webhookd("status", "--json", env=reader)
    assert status.returncode == 0, status.stderr
    found = json.loads(status.stdout)
    assert found["endpoints"][0]["backlog"]["parked"] == 1
    for command in ("events", "deliveries"):
        assert "parked" in webhookd(command, env=reader).stdout
    assert webhookd("endpoints", "show", "hook", env=reader).returncode == 0


@pytest.mark.parametrize("endpoints", [1, 300])
@pytest.mark.parametrize("analyzed", [False, True])
async def test_counting_looks_at_a_part_of_a_long_log_and_says_so(
    ask: Ask, sql: "Sql[asyncpg.Record]", endpoints: int, analyzed: bool
) -> None:
    numbers = [await endpoint(sql, f"hook-{n:03}") for n in range(endpoints)]
    await sql.execute("SELECT webhookd.park($1, 'saturated', 1)", numbers)
    await fill(sql, 50_000, 0)
    await sql.execute("UPDATE webhookd.parked SET from_batch = 1, next_batch = 1")
    await sql.execute("DELETE FROM webhookd.backlog")
    if analyzed:
        await sql.execute("ANALYZE")
    before = await counters(sql)
    spent = worked(sql.get_server_pid())
    found = await sql.fetch("SELECT * FROM webhookd.count_aside(10000)")
    spent = worked(sql.get_server_pid()) - spent
    assert await counters(sql) == before, "nothing was read from one end to the other"
    each = {1: 1_001, 300: 34}[endpoints]
    assert {tuple(row)[1:] for row in found} == {(each, True, 0, False)}
    assert spent * 1000 < MOST_MS * 10
    (line, *_) = rows(await ask("endpoints", "list"))
    assert line[4] == f"{each}+"
    assert f"{each}+" in rows(await ask("status"))[-1]
