"""Being woken survives the end of the connection that listens; one that hangs neither pins the queue nor the sleep."""

import asyncio
import signal
import statistics
import time

from tests.fault.fleet import Fleet
from tests.fault.verdict import ROLES, Connection, judge, wait_until_settled
from tests.fault.writers import insert, payload
from tests.stopwatch import Stopwatch, family
from tests.waiting import until

# Who asks producers to ring, as webhookd.wake() sees it.
SLEEPER = """SELECT pid FROM pg_locks
  WHERE locktype = 'advisory' AND (classid, objid, objsubid) = (7301, 2, 2) AND mode = 'ExclusiveLock' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
GONE = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)"
MOST_POLLED = 0.075  # seconds, the median: polls are 50 ms apart
DEAD_AFTER = 1.5  # seconds, at a tenth of the pace
SILENCED_WITHIN = 6.0  # of a minute, at a tenth of the pace
MOST_OF_THE_QUEUE = 1e-4


async def latencies(processes: Fleet, sql: Connection, first: int, count: int) -> list[float]:
    """Seconds of a stopwatch from commit to request of so many events, one by one, each when the daemon rests."""
    found, receiver = [], processes.receiver
    others = [*family(sql.get_server_pid()), receiver.pid, *(each.process.pid for each in processes.daemons.values())]
    for number in range(first, first + count):
        await asyncio.sleep(0.03 + number % 7 * 0.01)  # at any moment between two polls
        (event_id,) = await insert(sql, {f"e{number}": payload(0, number)})
        committed, watch = time.time(), Stopwatch(*others)
        got = await until(lambda: [r for r in receiver.receipts() if r.id == event_id], "it arrives")  # noqa: B023
        found.append(got[0].at - committed - watch.left_out)
    return found


async def test_who_cannot_listen_polls_and_is_woken_again_later(processes: Fleet, watched: Connection) -> None:
    processes.configure({"healthy": {}})
    await processes.start(ROLES[0])
    ended: list[int] = []

    async def sleeper() -> int:
        return await until(lambda: watched.fetchval(SLEEPER), "the daemon asks to be woken")

    await sleeper()
    woken = await latencies(processes, watched, 0, 30)
    for _ in range(2):  # after the first it may connect at once, but not after the second
        ended.append(await sleeper())
        await watched.execute("SELECT pg_terminate_backend($1)", ended[-1])
        await until(lambda: watched.fetchval(GONE, ended[-1]), "its connection is gone")
    polled: list[float] = []
    while await watched.fetchval(SLEEPER) is None and len(polled) < 300:
        polled += await latencies(processes, watched, 30 + len(polled), 1)
    now = await sleeper()
    again = await latencies(processes, watched, 1000, 30)
    for what, found in (("woken", woken), ("polled", polled), ("again", again)):
        shown = f"p50 {statistics.median(found) * 1000:.1f} ms, most {max(found) * 1000:.1f} ms of {len(found)}"
        print(what, shown)  # noqa: T201 - the figures are what the test is for
    assert now not in ended
    assert len(polled) > 10
    assert statistics.median(polled) < MOST_POLLED
    assert statistics.quantiles(again, n=4)[0] < statistics.median(polled) / 2, (
        "a quarter, as the machine has other work"
    )
    await until(lambda: watched.fetchval("SELECT listen_pid = $1 FROM webhookd.daemon", now), "others know it")
    assert len(processes.receiver.receipts()) == len(woken + polled + again)


async def test_a_daemon_that_hangs_while_it_listens_is_silenced(
    processes: Fleet, watched: Connection, dsn: str
) -> None:
    processes.configure({"healthy": {"max_in_flight": 50}})
    hanging = await processes.start(ROLES[0], dsn=dsn)  # of one role: nobody may end the connections of another
    pid: int = await until(lambda: watched.fetchval(SLEEPER), "the daemon asks to be woken")
    await processes.start(ROLES[1], dsn=dsn)
    start = await watched.fetchval("SELECT max(beat_at) FROM webhookd.daemon")
    steady = "SELECT min(beat_at) > $1::timestamptz + $2::float8 * interval '1 s' FROM webhookd.daemon"
    await until(lambda: watched.fetchval(steady, start, 2 * DEAD_AFTER), "both are steady")
    assert await watched.fetchval(SLEEPER) == pid
    assert await watched.fetchval("SELECT count(*) = 1 FROM webhookd.daemon WHERE listen_pid = $1", pid)
    hanging.send(signal.SIGSTOP)
    loop = asyncio.get_running_loop()
    began = loop.time()
    events: dict[str, str] = {}
    used: list[float] = []

    async def produce() -> None:  # each a transaction that rings, as long as somebody asks for it
        for number in range(len(events), len(events) + 20):
            events.update(await insert(watched, {f"e{number}": payload(0, number)}))
        used.append(await watched.fetchval("SELECT pg_notification_queue_usage()"))

    while not await watched.fetchval(GONE, pid):
        await produce()
        assert loop.time() - began < SILENCED_WITHIN, f"it still listens; {max(used):.7f} of the queue is used"
    took = loop.time() - began
    peak, used[:] = max(used), []
    for _ in range(20):
        await produce()
    print(f"silenced after {took:.1f} s, {len(events)} events, queue at most {peak:.7f}, then {max(used):.7f}")  # noqa: T201
    assert peak < MOST_OF_THE_QUEUE
    assert max(used) <= 1e-6 * 8, "the queue is emptied a few pages at a time"
    assert await watched.fetchval(SLEEPER) != pid
    hanging.send(signal.SIGCONT)
    assert await wait_until_settled(watched), processes.log()
    verdict = await judge(watched, events, processes.receiver.receipts(), ["healthy"])
    print(verdict)  # noqa: T201 - the figures are what the test is for
    assert not verdict.faults
    listening = "SELECT count(*) = 2 FROM webhookd.daemon d JOIN pg_stat_activity a ON a.pid = d.listen_pid"
    await until(lambda: watched.fetchval(listening), "both listen again")
    for name in ROLES[:2]:
        await processes.stop(name)
