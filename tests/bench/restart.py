"""How long events wait for a daemon that is started again: after a kill -9, here and elsewhere, and after a SIGTERM."""

import asyncio
import signal
import time
from typing import Any

import psutil

from tests.bench import rig
from tests.bench.isolation import MANY
from tests.bench.line import Line

EVENTS, GONE = 1_200, 300  # all, and those that have been received when the daemon goes
SLOTS = 100  # at 50 ms each, that is 2,000 a second
ELSEWHERE = "UPDATE webhookd.daemon SET machine = 'another'"


async def restart(server: str) -> list[Line]:
    """From the signal to the last of 1,200 deliveries, the start of the next daemon included."""
    here, _ = await _restarted(server, "killed", signal.SIGKILL)
    elsewhere, _ = await _restarted(server, "killed_elsewhere", signal.SIGKILL, ELSEWHERE)
    stopped, ending = await _restarted(server, "stopped", signal.SIGTERM)
    return [
        Line("kill -9 to the last of 1,200 deliveries, by the next daemon", here, "s", 3.0),
        # Heartbeats decide that, not the machine: what it takes to start is left out.
        Line("by how much later, where the next daemon is on another machine", elsewhere - here, "s", 21.0),
        Line("SIGTERM to the last of them, by the next daemon", stopped, "s", 3.0),
        Line(f"SIGTERM to the end of the process, {SLOTS} in flight", ending, "s", 1.0),
    ]


async def _restarted(server: str, name: str, number: signal.Signals, before: str = "") -> tuple[float, float]:
    """Seconds from the signal until everything was received, and until the process had ended."""
    limits: dict[str, Any] = {"max_in_flight": SLOTS}
    async with rig.receiver() as url, rig.database(server, name) as (dsn, connection):
        endpoints: dict[str, dict[str, Any]] = {"slow": {"url": f"{url}/slow", "events": ["slow"], **limits}}
        received: dict[str, float] = {}
        async with rig.daemon(dsn, endpoints, **limits) as daemon:
            await connection.execute(MANY, "slow", EVENTS, 1)
            while len(received) < GONE:
                received |= await rig.moments(url)
            if before:
                await connection.execute(before)
            began = time.monotonic()
            daemon.send_signal(number)
            await asyncio.to_thread(_wait_for_the_end_of, daemon)
            ended = time.monotonic()
        assert len(received) < EVENTS, "it was not fast enough to have something left"
        async with rig.daemon(dsn, endpoints, **limits):
            while len(received) < EVENTS and time.monotonic() < began + 60.0:
                received |= await rig.moments(url)
                await asyncio.sleep(0.005)
    last = max(received.values()) if len(received) == EVENTS else float("inf")
    return last - began, ended - began


def _wait_for_the_end_of(daemon: psutil.Process) -> None:
    while daemon.is_running() and daemon.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.005)
