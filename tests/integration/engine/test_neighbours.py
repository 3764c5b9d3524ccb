"""What a daemon of this machine had in hand is free when its process is known to be dead, and not before.

All daemons here beat so seldom that nobody is dead by its beats.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from signal import SIGSTOP

import pytest

from tests.integration.conftest import Receiver, Running, Sql, configuration, eventually, finished, insert, settled
from webhookd.daemon.daemon import Daemon
from webhookd.engine.engine import Intervals
from webhookd.policy.liveness import Process

SELDOM = Intervals(beat=20.0, rescue=0.1, look=0.05, flush=0.004, patience=0.3, neighbours=0.05)
WHO = "from webhookd.daemon.processes import ourselves; print(*ourselves(), flush=True); input()"
OTHER = 99
Seldom = Callable[[], AbstractAsyncContextManager[Daemon]]


@asynccontextmanager
async def process() -> AsyncIterator[tuple[asyncio.subprocess.Process, Process]]:
    """A process of this machine, and who it is."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WHO, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        *machine, pid, started = (await child.stdout.readline()).decode().split()
        yield child, Process(" ".join(machine), int(pid), int(started))
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def in_hand(sql: Sql, who: Process | None, **columns: object) -> dict[str, str]:
    """Another daemon has a batch, a cursor and a lease, and has just beaten; the events of these."""
    await sql.execute(
        "INSERT INTO webhookd.daemon (id, machine, pid, started) VALUES ($1, $2, $3, $4)",
        OTHER,
        *(who or (None, None, None)),
    )
    events = {}
    await sql.execute("SELECT webhookd.park('{2}', 'saturated', $1)", OTHER)
    for name, type_ in (("batch", "live"), ("cursor", "parked"), ("lease", "live")):
        events[name] = await insert(sql, type=type_)
        await sql.execute("SELECT batch_id FROM webhookd.cut(100, 100, $1)", OTHER)
    await sql.execute(
        "UPDATE webhookd.batch SET done_at = now() WHERE outbox_ids <> "
        "ARRAY(SELECT id FROM webhookd.outbox WHERE event_id = $1)",
        events["batch"],
    )
    await sql.execute(
        """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, due, owner)
           SELECT 1, id, created_at, now() + interval '44 s', $2 FROM webhookd.outbox WHERE event_id = $1""",
        events["lease"],
        OTHER,
    )
    return events


@pytest.fixture
async def running(sql: Sql, receiver: Receiver, daemon: Running) -> Seldom:
    """Runs daemons with two endpoints, which the database knows."""
    live = {"url": receiver.url("live"), "events": ["live"]}
    config = configuration({"live": live, "parked": {"url": receiver.url("parked"), "events": ["parked"]}})

    def run() -> AbstractAsyncContextManager[Daemon]:
        return daemon(config, SELDOM)

    async with run():
        pass
    return run


async def has_died(sql: Sql, daemon: int = OTHER) -> bool:
    return bool(await sql.fetchval("SELECT stopped_at IS NOT NULL FROM webhookd.daemon WHERE id = $1", daemon))


async def test_what_a_dead_predecessor_had_in_hand_is_sent_at_once(
    sql: Sql, receiver: Receiver, running: Seldom
) -> None:
    async with process() as (_, who):
        pass
    events = await in_hand(sql, who)
    async with running():
        for name, event in events.items():
            await settled(sql, event, {"parked" if name == "cursor" else "live": "delivered"})
        await finished(sql)
    assert sorted(receiver.events("live")) == sorted([events["batch"], events["lease"]])
    assert await has_died(sql)


async def test_a_daemon_that_dies_while_others_run_is_noticed(sql: Sql, receiver: Receiver, running: Seldom) -> None:
    async with process() as (child, who):
        events = await in_hand(sql, who)
        async with running():
            own = await insert(sql, type="live")
            await settled(sql, own, {"live": "delivered"})
            child.send_signal(SIGSTOP)  # frozen, it lives
            another = await insert(sql, type="live")
            await settled(sql, another, {"live": "delivered"})
            assert not await has_died(sql)
            assert receiver.events("live") == [own, another]
            child.kill()
            for name, event in events.items():
                await settled(sql, event, {"parked" if name == "cursor" else "live": "delivered"})


@pytest.mark.parametrize(
    "other",
    ["frozen", "of another boot", "in another container", "that nothing is known of"],
)
async def test_who_may_be_alive_keeps_what_it_has(sql: Sql, receiver: Receiver, running: Seldom, other: str) -> None:
    async with process() as (child, who):
        if other == "frozen":
            child.send_signal(SIGSTOP)
        else:
            child.kill()
            await child.wait()
        host, boot, pids, times = who.machine.split()
        machine = {
            "of another boot": f"{host} {boot[::-1]}x {pids} {times}",
            "in another container": f"{host} {boot} pid:[1] {times}",
        }.get(other, who.machine)
        await in_hand(sql, None if other.startswith("that") else who._replace(machine=machine))
        async with running(), running():
            for _ in range(3):
                await settled(sql, await insert(sql, type="live"), {"live": "delivered"})
            assert not await has_died(sql)
            assert await sql.fetchval("SELECT count(*) FROM webhookd.batch WHERE owner = 99 AND done_at IS NULL") == 1
            assert await sql.fetchval("SELECT owner FROM webhookd.backlog") == OTHER
            assert await sql.fetchval("SELECT owner FROM webhookd.parked") == OTHER
    assert len(receiver.got) == 3


async def test_who_said_goodbye_is_dead_at_once(sql: Sql, receiver: Receiver, running: Seldom) -> None:
    events = await in_hand(sql, None)
    await sql.execute("DELETE FROM webhookd.backlog")  # it gives leases back itself
    await sql.execute("UPDATE webhookd.daemon SET stopped_at = now() WHERE id = $1", OTHER)
    async with running():
        await settled(sql, events["batch"], {"live": "delivered"})
        await settled(sql, events["cursor"], {"parked": "delivered"})


async def test_a_dead_predecessor_has_no_share_of_the_limits(sql: Sql, receiver: Receiver, running: Seldom) -> None:
    async with process() as (_, who):
        pass
    await in_hand(sql, who)
    async with running():
        await finished(sql)
        assert await sql.fetchval("SELECT count(*) FROM webhookd.daemon WHERE stopped_at IS NULL") == 1


async def test_who_was_taken_for_dead_begins_anew(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    config = configuration({"hook": {"url": receiver.url("hook")}})
    async with daemon(config):
        first = await sql.fetchval("UPDATE webhookd.daemon SET stopped_at = now() RETURNING id")

        async def anew() -> bool:
            return bool(
                await sql.fetchval(
                    "SELECT EXISTS (SELECT FROM webhookd.daemon WHERE stopped_at IS NULL AND id > $1)", first
                )
            )

        await eventually(anew, "it to have another number")
        await settled(sql, await insert(sql), {"hook": "delivered"})
    assert len(receiver.got) == 1


async def test_a_row_says_which_process_it_is(sql: Sql, running: Seldom) -> None:
    async with running(), running():
        rows = await sql.fetch("SELECT machine, pid, started FROM webhookd.daemon WHERE stopped_at IS NULL")
        assert len(rows) == 2
        assert len({tuple(row) for row in rows}) == 1
        assert None not in tuple(rows[0])


async def test_a_container_has_a_machine_of_its_own() -> None:
    """Only root may make one here; the rest is told by the unit tests."""
    text = "from webhookd.daemon.processes import ourselves; print(*(ourselves() or ['nobody']))"
    told = []
    for options in ([], ["--mount-proc"]):
        child = await asyncio.create_subprocess_exec(
            "unshare", "--user", "--map-root-user", "--pid", "--fork", *options, sys.executable, "-c", text,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, error = await child.communicate()
        if child.returncode:
            pytest.skip(f"namespaces cannot be made here: {error.decode()}")
        told.append(out.decode().split())
    outside, inside = told
    assert outside == ["nobody"]  # its /proc is not of its own namespace
    async with process() as (_, who):
        *machine, pid, _started = inside
        assert int(pid) == 1
        assert machine[:2] == who.machine.split()[:2]
        assert machine[2] != who.machine.split()[2]
