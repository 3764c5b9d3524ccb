"""Daemons are killed while the API has them resend and test: each is made once, or told as not made."""

from collections import Counter

from aiohttp import ClientSession

from tests.fault import test_replay
from tests.fault.fleet import Fleet
from tests.fault.verdict import ROLES
from tests.fault.writers import Connection
from tests.integration.conftest import eventually
from tests.integration.web.conftest import Client, a_token
from webhookd.config.schema import Api as Settings
from webhookd.store.database import Database
from webhookd.web.api import Api
from webhookd.web.operation import Around
from webhookd.web.server import serve

EVENTS, KILLS = 60, 3
GIVEN_UP = 200
ENDED = "SELECT count(*) FROM webhookd.shot WHERE done_at IS NOT NULL"


async def test_resends_and_tests_while_daemons_are_killed(processes: Fleet, watched: Connection, dsn: str) -> None:
    first, second = ROLES[:2]
    processes.configure({"healthy": {"max_in_flight": 4}})
    processes.receiver.heal()
    for role in (first, second):
        await processes.start(role)
    await watched.execute(
        "INSERT INTO webhookd.outbox (type, payload) SELECT 't', '{}' FROM generate_series(1, $1)", EVENTS
    )
    delivered = "SELECT count(*) = $1 FROM webhookd.attempt WHERE ok"
    await eventually(lambda: watched.fetchval(delivered, EVENTS), "all of them")
    events = [
        row[0] for row in await watched.fetch("SELECT event_id FROM webhookd.outbox WHERE type = 't' ORDER BY id")
    ]
    name = await watched.fetchval("SELECT name FROM webhookd.endpoint")
    tests = set[str]()
    async with (
        Database(dsn, size=4) as database,
        serve(Api(database, Around(Settings())).answer, "127.0.0.1:0", {}, "[api]") as url,
        ClientSession() as session,
    ):
        api = Client(session, url, await a_token(dsn, "admin"))
        for number, event in enumerate(events):
            reply = await api("POST", f"/app/default/msg/{event}/endpoint/{name}/resend", idempotency_key=event)
            assert reply.status == 202, reply
            if number % 3 == 0:
                example = await api("POST", f"/app/default/endpoint/{name}/send-example", {"eventType": "t"})
                tests.add(example.body["id"])
            if number % (EVENTS // KILLS) == EVENTS // KILLS - 1:
                role = (first, second)[number % 2]
                await processes.daemons[role].kill()
                await processes.launch(role)
        wanted = EVENTS + len(tests)
        await eventually(lambda: watched.fetchval(f"SELECT ({ENDED}) = $1", wanted), "the end of all")
    came = Counter(receipt.id for receipt in processes.receiver.receipts() if receipt.path.endswith("healthy"))
    rows = await watched.fetch(
        "SELECT COALESCE(s.event_id, o.event_id) AS event, s.kind, s.ok, s.error FROM webhookd.shot s"
        " LEFT JOIN webhookd.outbox o ON o.id = s.outbox_id"
    )
    assert len(rows) == wanted
    for event, kind, ok, error in rows:
        before = 1 if kind == "resend" else 0
        assert came[event] - before == 1 if ok else came[event] - before in (0, 1), (event, kind, error)
        assert ok or error in ("lost", "not_taken"), error
    made = sum(row["ok"] for row in rows)
    print(f"{wanted} wanted, {made} made, {wanted - made} told as lost")  # noqa: T201 - the figure is what the test is for
    assert made >= wanted - KILLS * 2 * 4
    again = "SELECT count(*) FROM webhookd.attempt WHERE trigger = 'resend' AND ok"
    assert await watched.fetchval(again) == sum(row["ok"] and row["kind"] == "resend" for row in rows)


async def test_what_failed_is_recovered_while_daemons_are_killed(
    processes: Fleet, watched: Connection, dsn: str
) -> None:
    first, second = ROLES[:2]
    processes.configure({"healthy": {"max_in_flight": 4}})
    processes.receiver.heal()
    await processes.start(first)
    await processes.stop(first)
    await watched.execute(test_replay.INSERT, GIVEN_UP)
    while await watched.fetch("SELECT FROM webhookd.cut(10000, 500, 99, p_rest => 10000)"):
        await watched.execute("UPDATE webhookd.batch SET done_at = now() WHERE done_at IS NULL")
    ((endpoint, name),) = await watched.fetch("SELECT id, name FROM webhookd.endpoint")
    await watched.execute(test_replay.GIVEN_UP, endpoint)
    for role in (first, second):
        await processes.start(role)
    async with (
        Database(dsn, size=4) as database,
        serve(Api(database, Around(Settings())).answer, "127.0.0.1:0", {}, "[api]") as url,
        ClientSession() as session,
    ):
        api = Client(session, url, await a_token(dsn, "admin"))
        asked, since = f"/app/default/endpoint/{name}/recover", {"since": "2020-01-01T00:00:00Z"}
        begun = await api("POST", asked, since, idempotency_key="once")
        assert begun.status == 202, begun
        task = f"/background-task/{begun.body['id']}"
        for kill in range(KILLS):
            part = GIVEN_UP * (kill + 1) // (KILLS + 1)

            async def has_come_so_far(part: int = part) -> bool:
                return bool((await api("GET", task)).body["data"]["messagesSent"] >= part)

            await eventually(has_come_so_far, f"kill {kill}")
            role = (first, second)[kill % 2]
            await processes.daemons[role].kill()
            await processes.launch(role)

        async def is_over() -> bool:
            return bool((await api("GET", task)).body["status"] == "finished")

        await eventually(is_over, "the end of the task")
        again = await api("POST", asked, since, idempotency_key="once")
        assert again.body["id"] == begun.body["id"]
        await eventually(lambda: watched.fetchval("SELECT NOT EXISTS (SELECT FROM webhookd.backlog)"), "the last one")
        assert (await api("GET", task)).body["data"]["messagesSent"] == GIVEN_UP
    assert await watched.fetchval(test_replay.DELIVERED) == GIVEN_UP
