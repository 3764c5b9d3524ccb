"""Changing the configuration while deliveries run (acceptance 32, 47 and 63)."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.integration.conftest import (
    QUICK,
    Receiver,
    Running,
    Sql,
    configuration,
    eventually,
    finished,
    insert,
    insert_many,
    settled,
    states,
)
from tests.waiting import until
from webhookd.config.config import Config
from webhookd.errors import ConfigError
from webhookd.model import Egress


class Files:
    """What the next reload finds: a configuration, or the mistakes in it."""

    def __init__(self, now: Config) -> None:
        self.now: Config | Exception = now
        self.reads = 0

    def load(self) -> Config:
        self.reads += 1
        if isinstance(self.now, Exception):
            raise self.now
        return self.now


def endpoints(receiver: Receiver, *names: str, **changes: Any) -> Config:
    """A configuration of endpoints that get every event, each at a path of its name."""
    return configuration({name: {"url": receiver.url(name)} | changes for name in names})


async def running_names(sql: Sql) -> set[str]:
    rows = await sql.fetch("SELECT name FROM webhookd.endpoint WHERE removed_at IS NULL")
    return {row["name"] for row in rows}


def becomes(sql: Sql, names: set[str]) -> Callable[[], Any]:
    async def reached() -> bool:
        return await running_names(sql) == names

    return reached


async def problem(sql: Sql) -> str | None:
    found: str | None = await sql.fetchval(
        "SELECT config_problem FROM webhookd.daemon WHERE stopped_at IS NULL ORDER BY id DESC LIMIT 1"
    )
    return found


async def test_a_new_endpoint_gets_what_comes_after_it(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    files = Files(endpoints(receiver, "one"))
    async with daemon(endpoints(receiver, "one"), load=files.load) as running:
        first = await insert(sql)
        await settled(sql, first, {"one": "delivered"})
        files.now = endpoints(receiver, "one", "two")
        running.reload()
        await eventually(becomes(sql, {"one", "two"}), "the new endpoint")
        second = await insert(sql)
        await settled(sql, second, {"one": "delivered", "two": "delivered"})
    assert receiver.events("two") == [second]


async def test_nothing_is_lost_or_sent_twice_while_the_configuration_changes(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    both, files = endpoints(receiver, "one", "two"), Files(endpoints(receiver, "one", "two"))
    async with daemon(both, load=files.load) as running:
        sent: list[str] = []
        for turn in range(10):
            sent += await insert_many(sql, 200)
            files.now = endpoints(receiver, "one", "two", max_in_flight=turn + 1)
            reads = files.reads
            running.reload()
            await until(lambda reads=reads: files.reads > reads, "the reload")  # type: ignore[misc]  # bound now
        await until(lambda: len(receiver.got) >= 2 * len(sent), "all deliveries")
    assert sorted(receiver.events("one")) == sorted(receiver.events("two")) == sorted(sent)


async def test_what_an_endpoint_was_owed_waits_until_it_is_back(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    receiver.answers("two", 500)
    both = endpoints(receiver, "one", "two")
    files = Files(both)
    async with daemon(both, load=files.load) as running:
        event_id = await insert(sql)
        await settled(sql, event_id, {"one": "delivered", "two": "retrying"})
        files.now = endpoints(receiver, "one")
        running.reload()
        await eventually(becomes(sql, {"one"}), "its removal")
        meanwhile = await insert(sql)
        await settled(sql, meanwhile, {"one": "delivered"})
        await settled(sql, event_id, {"one": "delivered", "two": "retrying"})
        receiver.answers("two", 200)
        files.now = both
        running.reload()
        await settled(sql, event_id, {"one": "delivered", "two": "delivered"})
    assert meanwhile not in receiver.events("two")


async def test_an_inactive_endpoint_gets_nothing_and_keeps_what_it_was_owed(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    receiver.answers("one", 500)
    active, files = endpoints(receiver, "one"), Files(endpoints(receiver, "one", active=False))
    async with daemon(active, load=files.load) as running:
        event_id = await insert(sql)
        await settled(sql, event_id, {"one": "retrying"})
        running.reload()
        spec = "SELECT (spec->>'active')::bool FROM webhookd.endpoint"

        async def inactive() -> bool:
            return not await sql.fetchval(spec)

        await eventually(inactive, "the switch")
        meanwhile = await insert(sql)
        await settled(sql, meanwhile, {None: "unmatched"})
        receiver.answers("one", 200)
        assert await states(sql, event_id) == {"one": "retrying"}
        files.now = active
        running.reload()
        await settled(sql, event_id, {"one": "delivered"})
    assert meanwhile not in receiver.events("one")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConfigError(["webhookd.toml:3: [delivery] timeout: no"]), "webhookd.toml:3: [delivery] timeout: no"),
        (ValueError("no mistake of theirs"), "a bug of webhookd keeps it from reading these files; the log has more"),
    ],
)
async def test_a_mistake_keeps_the_old_configuration_and_shows(
    sql: Sql, receiver: Receiver, daemon: Running, error: Exception, told: str
) -> None:
    files = Files(endpoints(receiver, "one"))
    async with daemon(endpoints(receiver, "one"), load=files.load) as running:
        files.now = error
        running.reload()

        async def shown() -> bool:
            return await problem(sql) == told

        await eventually(shown, "the mistake in the table of daemons")
        await settled(sql, await insert(sql), {"one": "delivered"})
        files.now = endpoints(receiver, "one")
        running.reload()

        async def mended() -> bool:
            return await problem(sql) is None

        await eventually(mended, "the end of the problem")


async def test_a_wrong_push_is_refused_until_it_is_accepted(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    names = [f"e{n}" for n in range(20)]
    all_of_them, half = endpoints(receiver, *names), endpoints(receiver, *names[:10])
    files = Files(half)
    async with daemon(all_of_them, load=files.load) as running:
        await eventually(becomes(sql, set(names)), "the endpoints")
        running.reload()

        async def refused() -> bool:
            return "10 of 20 endpoints are gone" in (await problem(sql) or "")

        await eventually(refused, "the refusal")
        assert await running_names(sql) == set(names)
        await sql.execute("INSERT INTO webhookd.consent (removed) VALUES ($1)", names[10:])
        # What `webhookd reload` does; every daemon looks.
        await sql.execute("UPDATE webhookd.config_version SET reload = reload + 1")
        await eventually(becomes(sql, set(names[:10])), "the removal")
        assert await problem(sql) is None


async def test_daemons_with_different_files_owe_what_either_of_them_knows(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    old, new = endpoints(receiver, "stays", "goes"), endpoints(receiver, "stays", "comes")
    everybody = {"stays", "goes", "comes"}
    files = Files(new)
    async with daemon(old, load=files.load) as first, daemon(new):
        await eventually(becomes(sql, everybody), "all three, since one daemon still has the one that goes")

        async def noticed() -> bool:
            """Each daemon handles some of these events, and both count all files by now."""
            ids = [await insert(sql) for _ in range(20)]
            await finished(sql)
            return all([await states(sql, event_id) == dict.fromkeys(everybody, "delivered") for event_id in ids])

        await eventually(noticed, "an event for all three, whoever handles it")
        first.reload()
        await eventually(becomes(sql, {"stays", "comes"}), "its removal by the last that had it")

        async def gone() -> bool:
            """The other daemon has noticed, too."""
            event_id = await insert(sql)
            await eventually(lambda: has_ended(sql, event_id), "the event at those that are left")
            return await states(sql, event_id) == {"stays": "delivered", "comes": "delivered"}

        await eventually(gone, "an event that it is not owed")


async def has_ended(sql: Sql, event_id: str) -> bool:
    found = await states(sql, event_id)
    return found.get("stays") == found.get("comes") == "delivered"


async def test_a_thousand_reloads_at_once_are_a_few(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    files = Files(endpoints(receiver, "one"))
    async with daemon(endpoints(receiver, "one"), load=files.load) as running:
        tasks = len(asyncio.all_tasks())
        for _ in range(1000):
            running.reload()
            await asyncio.sleep(0)
        await settled(sql, await insert(sql), {"one": "delivered"})
        await until(lambda: len(asyncio.all_tasks()) <= tasks + 2, "the end of the reloads")
    assert 1 <= files.reads <= 20


async def test_a_network_that_is_no_longer_allowed_is_closed(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    table = {
        "one": {"url": f"http://localhost:{receiver.port}/one"}
    }  # a name: its address is judged when it is dialled
    opened = configuration(table, egress={"allow_http": True, "allow_networks": ["127.0.0.0/8", "::1/128"]})
    files = Files(opened)
    async with daemon(opened, load=files.load) as running:
        await settled(sql, await insert(sql), {"one": "delivered"})
        # The same endpoint; only the permission is gone, as the loader would refuse the two together.
        files.now = Config(
            **{
                **{name: getattr(opened, name) for name in opened.__dataclass_fields__},
                "egress": Egress(allow_http=True),
                "config_hash": "closed",
            }
        )
        running.reload()

        async def taken() -> bool:
            return bool(await sql.fetchval("SELECT bool_or(config_hash = 'closed') FROM webhookd.daemon"))

        await eventually(taken, "the reload")
        event_id = await insert(sql)
        await settled(sql, event_id, {"one": "retrying"})
        assert await sql.fetchval("SELECT error FROM webhookd.attempt WHERE NOT ok LIMIT 1") == "egress_denied"
    assert len(receiver.got) == 1


async def test_without_its_tenant_an_event_reaches_nobody_where_one_is_required(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    config = configuration(
        {"all": {"url": receiver.url("all"), "tenant": "*"}, "none": {"url": receiver.url("none")}},
        delivery={"require_tenant": True},
    )
    async with daemon(config):
        forgotten, meant = await insert(sql), await insert(sql, tenant="acme")
        await settled(sql, forgotten, {None: "unmatched"})
        await settled(sql, meant, {"*/all": "delivered"})


async def test_a_mistake_with_signs_that_postgres_does_not_take_is_shown_all_the_same(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    """The name of a file may be any bytes."""
    files = Files(endpoints(receiver, "a"))
    async with daemon(files.load(), load=files.load) as running:
        files.now = ConfigError(["od\udcff.toml:1: \0[endpoint.x] url: is required"])
        running.reload()

        async def shown() -> bool:
            return await problem(sql) == r"od\udcff.toml:1: [endpoint.x] url: is required"

        await eventually(shown, "the problem is shown")


async def test_an_endpoint_counts_for_all_that_is_committed_after_it(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    """Also at a daemon that looks for new endpoints only now and then: it has to know them before it matches."""
    seldom = replace(QUICK, look=30.0)
    tables: dict[str, dict[str, Any]] = {"hook": {"url": receiver.url("hook"), "events": ["old"]}}
    loaded = [configuration(tables)]
    async with daemon(loaded[0], seldom), daemon(loaded[0], load=lambda: loaded[0]) as second:
        events: list[str] = []
        for n in range(5):
            tables[f"new-{n}"] = {"url": receiver.url("new"), "events": [f"new.{n}"]}
            loaded[0] = configuration(tables)
            second.reload()

            async def is_there(name: str = f"new-{n}") -> bool:
                return bool(await sql.fetchval("SELECT count(*) FROM webhookd.endpoint WHERE name = $1", name))

            await eventually(is_there, "the new endpoint")
            events += [await insert(sql, type=f"new.{n}") for _ in range(5)]
        await until(lambda: set(events) <= set(receiver.events("new")), "all of them")
