"""`webhookd events`, `deliveries`, `attempts`, `endpoints`: what they print, page by page, whatever is in the rows."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from typer.testing import CliRunner

from tests.integration.cli.test_cli import NOWHERE, fails, webhookd
from tests.integration.conftest import eventually, insert
from tests.integration.store.test_plans import counters
from webhookd.cli.listings import chosen
from webhookd.cli.main import app
from webhookd.cli.options import Usage
from webhookd.errors import WebhookdError
from webhookd.message.request import without_query
from webhookd.store.database import Database
from webhookd.store.listings import STATES, Asked, Listings, Page

Sql = asyncpg.Connection
Ask = Callable[..., Awaitable[str]]
HOSTILE = "evil\x1b[2J\x1b]0;title\x07[bold]\x7f\u009b31m\u202e:smile:"
MOST_MS = 100.0


@pytest.fixture
def ask(dsn: str) -> Ask:
    """What a command prints."""

    async def run(*arguments: object) -> str:
        given = list(map(str, arguments))
        found = await asyncio.to_thread(CliRunner().invoke, app, given, env={"WEBHOOKD_DSN": dsn})
        assert found.exit_code == 0, found.exception or found.output
        return found.stdout

    return run


async def asked(ask: Ask, *arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await ask(*arguments, "--json"))
    return found


def rows(text: str) -> list[list[str]]:
    """The rows of a table, without its head; columns are two spaces apart."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()[1:] if not line.startswith("more:")]


async def endpoint(sql: "Sql[asyncpg.Record]", name: str, tenant: str = "", **spec: Any) -> int:
    made = {"tenant": tenant, "name": name, "url": "https://example.com/hook?token=tk", "events": ["*"], **spec}
    number: int = await sql.fetchval(
        "INSERT INTO webhookd.endpoint (tenant, name, source, spec) VALUES ($1, $2, 'file', $3) RETURNING id",
        tenant,
        name,
        json.dumps(made),
    )
    return number


async def attempt(
    sql: "Sql[asyncpg.Record]",
    event_id: str,
    to: int,
    number: int = 1,
    code: int | None = 200,
    body: bytes | None = None,
) -> None:
    ok = code == 200
    error = None if ok else "timeout" if code is None else f"http_{code}"
    await sql.execute(
        """INSERT INTO webhookd.attempt (at, outbox_id, endpoint_id, attempt, ok, code, ms, error, response)
           SELECT clock_timestamp(), id, $2, $3, $4, $5, 12, $6, $7 FROM webhookd.outbox WHERE event_id = $1""",
        event_id, to, number, ok, code, error, body,
    )  # fmt: skip


async def owe(sql: "Sql[asyncpg.Record]", event_id: str, to: int, state: str = "retry", attempts: int = 1) -> None:
    await sql.execute(
        """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, attempts, due, state, last_code, last_error)
           SELECT $2, id, created_at, $4, now() + interval '1 h', $3, 500, 'http_500'
             FROM webhookd.outbox WHERE event_id = $1""",
        event_id, to, state, attempts,
    )  # fmt: skip


async def batch(sql: "Sql[asyncpg.Record]", number: int, event_id: str, done: bool) -> None:
    await sql.execute(
        """INSERT INTO webhookd.batch (id, pos_xmax, outbox_ids, lo, hi, owner, claims, done_at)
           SELECT $1, '1', ARRAY[id], created_at, created_at, 1, 1, CASE WHEN $3 THEN now() END
             FROM webhookd.outbox WHERE event_id = $2""",
        number, event_id, done,
    )  # fmt: skip


async def test_events_and_what_became_of_them(ask: Ask, sql: "Sql[asyncpg.Record]") -> None:
    assert await ask("events") == "nothing found\n"
    one, two = await endpoint(sql, "one"), await endpoint(sql, "two")
    ids = [await insert(sql, type=type_, event_id=type_[0]) for type_ in ("a.b", "c.d", "e.f", "g.h.i")]
    await attempt(sql, "a", one)
    await attempt(sql, "a", two, 1, 500)
    await owe(sql, "a", two)
    await batch(sql, 1, "c", done=True)
    await batch(sql, 2, "e", done=False)
    shown = rows(await ask("events"))
    assert [line[1] for line in shown] == ids[::-1]
    assert [line[-1] for line in shown] == ["waiting", "sending", "unmatched", "1 delivered, 1 retrying"]
    (first,) = (await asked(ask, "events", "--type", "a.*"))["events"]
    assert first["deliveries"] == {key: int(key in ("delivered", "retrying")) for key in STATES}
    assert {key: first[key] for key in ("event_id", "type", "tenant", "size", "state")} == {
        "event_id": "a",
        "type": "a.b",
        "tenant": "",
        "size": 2,
        "state": None,
    }


async def test_events_of_a_type_a_tenant_and_a_time(ask: Ask, sql: "Sql[asyncpg.Record]") -> None:
    for type_ in ("order.created", "order.line.added", "orders", "webhookd.test"):
        tenant, own = "acme" if type_ == "orders" else "", type_.startswith("webhookd.")
        await insert(sql, type=type_, event_id=type_.replace(".", "-"), tenant=tenant, own=own)
    await sql.execute(
        "INSERT INTO webhookd.outbox (type, payload, created_at) VALUES ('old', '1', now() - interval '2 h')"
    )

    async def types(*options: str) -> list[str]:
        return [each["type"] for each in (await asked(ask, "events", *options))["events"]]

    assert await types("--type", "order.*") == ["order.line.added", "order.created"]
    assert await types("--type", "order.created") == ["order.created"]
    assert await types("--type", "*", "--tenant", "") == ["old", "order.line.added", "order.created"]
    assert await types("--tenant", "acme") == ["orders"]
    assert "old" not in await types("--since", "1h")
    assert "old" in await types("--since", "3h")


async def test_events_with_an_ordering_key(ask: Ask, sql: "Sql[asyncpg.Record]") -> None:
    for key in ("cart-1", "cart-2", None):
        await insert(sql, event_id=str(key), ordering_key=key)
    shown = (await asked(ask, "events"))["events"]
    assert [each["ordering_key"] for each in shown] == [None, "cart-2", "cart-1"]
    (one,) = (await asked(ask, "events", "--ordering-key", "cart-1"))["events"]
    assert one["event_id"] == "cart-1"
    assert await ask("events", "--ordering-key", "") == "nothing found\n"


async def test_pages_neither_repeat_nor_leave_out(ask: Ask, sql: "Sql[asyncpg.Record]") -> None:
    numbers = [await endpoint(sql, name) for name in ("one", "two", "three")]
    for n in range(7):
        event_id = await insert(sql, event_id=f"e{n}")
        for number in numbers:
            await attempt(sql, event_id, number)
    await sql.execute("UPDATE webhookd.attempt SET at = date_trunc('minute', at)")  # so that moments tie
    for listing, total in (("events", 7), ("deliveries", 21), ("attempts", 21)):
        whole = (await asked(ask, listing))[listing]
        assert len(whole) == total
        paged: list[Any] = []
        more: str | None = ""
        while more is not None:
            page = await asked(ask, listing, "--limit", 4, *(["--before", more] if more else []))
            paged += page[listing]
            more = page["more"]
            if len(paged) == 4:
                await insert(sql, event_id=f"new-{listing}")  # is above every cursor
        assert paged == [each for each in whole if not str(each["event_id"]).startswith("new")]
    assert re.search(r"^more: --before \d+\.\d+$", await ask("deliveries", "--limit", 1), re.MULTILINE)


async def test_deliveries_by_state_endpoint_and_event(ask: Ask, sql: "Sql[asyncpg.Record]") -> None:
    plain, acme = await endpoint(sql, "orders"), await endpoint(sql, "orders", "acme")
    await insert(sql, event_id="good")
    await attempt(sql, "good", plain, 1, 500)
    await attempt(sql, "good", plain, 2)
    for state in ("retry", "held", "exhausted", "rejected"):
        await insert(sql, event_id=state)
        await owe(sql, state, acme, state, 3)
    await attempt(sql, "retry", acme, 3, None)

    async def found(*options: str) -> list[tuple[str, str, str]]:
        lines = (await asked(ask, "deliveries", *options))["deliveries"]
        return [(line["event_id"], line["endpoint"], line["state"]) for line in lines]

    bad = [
        (state, "acme/orders", state.replace("retry", "retrying"))
        for state in ("rejected", "exhausted", "held", "retry")
    ]
    good = ("good", "orders", "delivered")
    assert await found() == [*bad, good]
    assert await found("--state", "failed") == bad[:2]
    assert await found("--state", "held") == [bad[2]]
    assert await found("--state", "delivered") == [good]
    assert await found("--endpoint", "orders") == [good]
    assert await found("--endpoint", "acme/orders", "--since", "1h") == bad
    assert await found("--event", "retry") == [bad[3]]
    (line,) = (await asked(ask, "deliveries", "--event", "good"))["deliveries"]
    assert (line["attempts"], line["last"]["code"], line["next_at"]) == (2, 200, None)
    (line,) = (await asked(ask, "deliveries", "--state", "retrying"))["deliveries"]
    assert (line["attempts"], line["last"]["code"], line["last"]["at"] is None) == (3, 500, False)
    assert rows(await ask("deliveries", "--event", "held"))[0][:6] == [
        "held", "order.created", "acme/orders", "held", "3", "500"
    ]  # fmt: skip


async def test_attempts_and_their_answers(ask: Ask, sql: "Sql[asyncpg.Record]") -> None:
    one, two = await endpoint(sql, "one"), await endpoint(sql, "two")
    for event_id in ("a", "b"):
        await insert(sql, event_id=event_id)
    await attempt(sql, "a", one, 1, 503, b"try later\r\nagain\n")
    await attempt(sql, "b", two, 1, None)
    await attempt(sql, "a", one, 2)
    shown = rows(await ask("attempts"))
    assert [line[1:] for line in shown] == [
        ["one", "a", "order.created", "2", "200", "12"],
        ["two", "b", "order.created", "1", "timeout", "12"],
        ["one", "a", "order.created", "1", "503", "12"],
    ]
    assert [line[2] for line in rows(await ask("attempts", "--failed"))] == ["b", "a"]
    assert [line[2] for line in rows(await ask("attempts", "--endpoint", "two", "--since", "1h"))] == ["b"]
    assert [line[4] for line in rows(await ask("attempts", "--event", "a"))] == ["2", "1"]
    assert "try later" not in await ask("attempts")
    assert (await ask("attempts", "--show-response")).endswith("  one  a answered 503:\n  | try later\n  | again\n")
    assert (await asked(ask, "attempts", "--show-response"))["attempts"][2]["response"] == "try later\r\nagain\n"


async def test_endpoints(ask: Ask, sql: "Sql[asyncpg.Record]") -> None:
    assert "no endpoint is known yet" in await ask("endpoints", "list")
    on = await endpoint(sql, "on", url="https://user:pw@example.com/a/b?token=tk#f", events=["a.*", "b"])
    await endpoint(sql, "off", "acme", active=False)
    gone = await endpoint(sql, "gone")
    await sql.execute("UPDATE webhookd.endpoint SET removed_at = now() WHERE id = $1", gone)
    for event_id, state in (("a", "retry"), ("b", "rejected")):
        await insert(sql, event_id=event_id)
        await owe(sql, event_id, on, state)
    await attempt(sql, "a", on, 1, 500)
    assert rows(await ask("endpoints", "list")) == [
        ["gone", "removed", "https://example.com/hook", "*", "0", "0"],
        ["on", "active", "https://example.com/a/b", "a.*, b", "1", "1", "0 s", "500, 0 s ago"],
        ["acme/off", "inactive", "https://example.com/hook", "*", "0", "0"],
    ]
    shown = await ask("endpoints", "show", "on")
    assert "owed         1 retrying\nfailed       1 rejected\n" in shown
    assert re.search(r"last answer  500 in 12 ms, \d s ago", shown)
    assert rows(shown[shown.index("last attempt") :])[1][1:] == ["a", "order.created", "1", "500", "12"]
    printed = await ask("endpoints", "show", "on", "--json")
    assert json.loads(printed)["backlog"] == {
        "waiting": 0, "retrying": 1, "held": 0, "parked": 0, "exhausted": 0, "rejected": 1, "missed": 0
    }  # fmt: skip
    listed = await ask("endpoints", "list", "--json")
    assert [each["state"] for each in json.loads(listed)["endpoints"]] == ["removed", "active", "inactive"]
    for text in (shown, printed, listed):
        assert "token" not in text
        assert "pw" not in text


async def test_an_id_is_shown_whole_however_long_it_is(ask: Ask, sql: "Sql[asyncpg.Record]") -> None:
    event_id, tenant = await insert(sql, event_id="e" * 128), "t" * 255
    hook = await endpoint(sql, "hook", tenant)
    await attempt(sql, event_id, hook, 1, 500)
    await owe(sql, event_id, hook)
    for command in ("deliveries", "attempts", "endpoints list", "status"):
        assert f"{tenant}/hook" in (await ask(*command.split())).split()
    for command in ("events", "deliveries", "attempts", "endpoints show hook"):
        assert event_id in (await ask(*command.split())).split()


async def test_nothing_that_others_wrote_acts_on_the_terminal(
    ask: Ask, sql: "Sql[asyncpg.Record]", dsn: str, tmp_path: Path
) -> None:
    config = tmp_path / "webhookd.toml"
    config.write_text(
        f'[database]\ndsn = "{dsn}"\n[endpoint.all]\nurl = "https://example.com/"\nevents = ["*"]\ntenant = "*"\n'
        'signature = "none"\n'
    )
    hook = await endpoint(sql, "hook", url=f"https://example.com/{HOSTILE}", description=HOSTILE, events=[HOSTILE])
    await insert(sql, type=HOSTILE, tenant=HOSTILE, event_id="e")
    await attempt(sql, "e", hook, 1, 500, HOSTILE.encode() + b"\x00\xff\r\n[red]more\rover")
    await owe(sql, "e", hook)
    await sql.execute("UPDATE webhookd.backlog SET last_code = NULL, last_error = $1", HOSTILE)
    await sql.execute(
        "INSERT INTO webhookd.daemon (id, host, version, config_hash, config_problem) VALUES (1, $1, '1', 'h', $1)",
        HOSTILE,
    )
    for command in (
        "events",
        "deliveries",
        "attempts --show-response",
        "endpoints list",
        "endpoints show hook",
        "status",
        f"explain e -c {config}",
    ):
        for text in (await ask(*command.split()), await ask(*command.split(), "--json")):
            acting = {c for c in text if not c.isprintable() and c != "\n"}
            assert not acting, command
            assert "[bold]" in text
            assert ":smile:" in text
    assert (await asked(ask, "events"))["events"][0]["type"] == HOSTILE  # to a parser it is what it was
    shown = await ask("attempts", "--show-response")
    assert r"  | evil\x1b[2J\x1b]0;title\x07[bold]\x7f\x9b31m\u202e:smile:\x00\xff" + "\n" in shown
    assert "  | [red]more\\rover\n" in shown


async def test_a_very_long_type_does_not_flood_the_table(ask: Ask, sql: "Sql[asyncpg.Record]") -> None:
    await sql.execute('ALTER TABLE webhookd.outbox DROP CONSTRAINT "type may have 512 characters at most"')
    await insert(sql, type="x" * 100_000)  # as one that was there before it was forbidden
    assert len(await ask("events")) < 1_000


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("events", "--before", "1.2"), 2, '--before: "1.2" is no cursor of this listing'),
        (("attempts", "--before", "9" * 18 + ".1.1.1"), 2, "is no cursor"),
        (("deliveries", "--before", "\x1b[2J"), 2, "--before: "),
        (("events", "--since", "yesterday"), 2, '--since: "yesterday" is no duration'),
        (("events", "--type", "a*b"), 2, '--type: "a*b" is no event pattern'),
        (("events", "--tenant", b"\xff".decode(errors="surrogateescape")), 2, "is not UTF-8"),
        (("deliveries", "--event", "nope"), 1, 'no event has the id "nope"'),
        (("attempts", "--endpoint", "nope"), 1, 'there is no endpoint "nope"'),
        (("endpoints", "show", "nope"), 1, "`webhookd endpoints list`"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: tuple[str, ...], code: int, sentence: str, dsn: str) -> None:
    found = webhookd(*arguments, env={"WEBHOOKD_DSN": dsn})
    fails(found, code, sentence)
    assert found.stderr.startswith("webhookd: ")
    assert found.stderr.count("\n") == 1
    assert "\x1b" not in found.stderr


def test_the_usual_exit_codes(empty_dsn: str) -> None:
    fails(webhookd("events", env={"WEBHOOKD_DSN": NOWHERE}), 69, "does not answer")
    fails(webhookd("endpoints", "list", env={"WEBHOOKD_DSN": empty_dsn}), 69, "`webhookd migrate`")
    fails(webhookd("-c", "/does/not/exist", "endpoints", "list"), 78, "/does/not/exist")
    fails(webhookd("deliveries", "--state", "wrong"), 2, "rejected")
    fails(webhookd("events", "--limit", "0"), 2, "--limit")


def test_an_endpoint_is_called_by_its_name_or_with_its_tenant() -> None:
    names = {1: ("", "a"), 2: ("x", "a"), 3: ("x", "b"), 4: ("x", "c"), 5: ("y/z", "c")}
    assert [chosen(names, text) for text in ("a", "x/a", "b", "y/z/c")] == [1, 2, 3, 5]
    with pytest.raises(Usage, match="2 tenants have an endpoint c: write x/c or y/z/c"):
        chosen(names, "c")
    with pytest.raises(WebhookdError, match="there is no endpoint"):
        chosen(names, "d")


def test_a_url_is_shown_without_what_may_be_secret() -> None:
    assert without_query("https://u:p@h.example:8443/a@b?k=v#f") == "https://h.example:8443/a@b"
    assert without_query("https://h.example?k=v") == "https://h.example"


SEED = """
INSERT INTO webhookd.endpoint (tenant, name, source, spec)
  SELECT '', 'hook-' || n, 'file', '{"url": "https://example.com/", "events": ["*"]}' FROM generate_series(1, 200) n;
INSERT INTO webhookd.outbox (type, payload, created_at)
  SELECT CASE WHEN n % 1000 = 0 THEN 'rare' ELSE 'order.created' END, '{}', now() + (n - 1000000) * interval '0.3 s'
    FROM generate_series(1, 1000000) n;
INSERT INTO webhookd.attempt (at, outbox_id, endpoint_id, attempt, ok, code, ms)
  SELECT created_at + f * interval '3 ms', id, 1 + (2 * id + f) % 198, 1, true, 200, 12
    FROM webhookd.outbox, generate_series(0, 1) f;
INSERT INTO webhookd.attempt (at, outbox_id, endpoint_id, attempt, ok, code, ms)
  SELECT created_at, id, 199, 1, false, 500, 12 FROM webhookd.outbox WHERE id % 20000 = 7;
INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, due, state)
  SELECT 199 + id % 2, id, created_at, now(), CASE WHEN id % 50000 = 0 THEN 'rejected' ELSE 'retry' END
    FROM webhookd.outbox WHERE id % 5 = 0;
VACUUM ANALYZE"""


@pytest.mark.long
async def test_a_page_costs_the_same_however_much_there_is(dsn: str, sql: "Sql[asyncpg.Record]") -> None:
    for parent in ("outbox", "attempt"):
        for days in range(1, 5):
            await sql.execute(
                f"""DO $$ DECLARE d date := (now() AT TIME ZONE 'UTC')::date - {days}; BEGIN EXECUTE format(
                'CREATE TABLE webhookd.%I PARTITION OF webhookd.{parent} FOR VALUES FROM (%L) TO (%L)',
                '{parent}_' || to_char(d, 'YYYYMMDD'), d || ' 00:00:00+00', d + 1 || ' 00:00:00+00'); END $$"""
            )
    for statement in SEED.split(";\n"):
        await sql.execute(statement, timeout=300)
    before = await counters(sql)
    async with Database(dsn, size=1) as database:
        listings = Listings(database)
        ids = list(await listings.names())
        hour = Asked(50, None, 3600.0)

        def tries(asked: Asked, ids: list[int], failed: bool = False) -> Awaitable[Page[Any]]:
            return listings.attempts(asked, ids, None, failed=failed, responses=True)

        questions: dict[str, Callable[[], Awaitable[Page[Any]]]] = {
            "events": lambda: listings.events(Asked(50), None, None),
            "events, far down": lambda: listings.events(Asked(50, (500_000,)), None, None),
            "events, a rare type": lambda: listings.events(Asked(50), "^rare$", None),
            "events, the last hour": lambda: listings.events(hour, None, None),
            "deliveries": lambda: listings.deliveries(Asked(50), None, STATES, None),
            "deliveries, far down": lambda: listings.deliveries(Asked(50, (500_000, 3)), None, STATES, None),
            "deliveries, one endpoint": lambda: listings.deliveries(Asked(50), 5, STATES, None),
            "deliveries, rejected": lambda: listings.deliveries(Asked(20), None, ("rejected",), None),
            "deliveries, retrying": lambda: listings.deliveries(Asked(50), 200, ("retrying",), None),
            "deliveries, the last hour": lambda: listings.deliveries(hour, None, STATES, None),
            "attempts": lambda: tries(Asked(50), ids),
            "attempts, one endpoint": lambda: tries(Asked(50), [5]),
            "attempts, an hour of failed": lambda: tries(hour, ids, True),
        }
        figures = {}
        for name, question in questions.items():
            took = []
            for _ in range(5):
                began = time.perf_counter()
                page = await question()
                took.append((time.perf_counter() - began) * 1000)
            assert page.rows or "failed" in name, name
            figures[name] = min(took)
            print(f"{name:30} {figures[name]:7.1f} ms  {len(page.rows)} rows")  # noqa: T201 - the figures
    others = """SELECT count(*) = 0 FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""
    await eventually(lambda: sql.fetchval(others), "that session has ended, and has counted what it read")
    after = await counters(sql)
    assert {table: after[table] - before[table] for table in after if after[table] > before[table]} == {}
    assert {name: figure for name, figure in figures.items() if figure > MOST_MS} == {}
    async with Database(dsn, size=1) as database:
        began = time.perf_counter()
        page = await Listings(database).attempts(Asked(50), ids, None, failed=True, responses=True)
        print(f"all failed of 2 M: {(time.perf_counter() - began) * 1000:.1f} ms")  # noqa: T201 - no index serves it
        assert len(page.rows) == 50
