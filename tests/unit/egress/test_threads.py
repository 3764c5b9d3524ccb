"""Work goes to threads by its rank, and what comes after it to the loop."""

import asyncio
import threading
from functools import partial

import pytest

from tests.waiting import HANGS
from webhookd.egress.threads import THREADS, ThreadPool


async def test_the_smallest_rank_comes_first_and_the_loop_hears_of_it() -> None:
    threads, gate, done, worked = ThreadPool(), threading.Event(), asyncio.Event(), []
    here = threading.get_ident()

    def over(rank: float) -> None:
        assert threading.get_ident() == here
        told.append(rank)
        if len(told) == THREADS + 5:
            done.set()

    def wait() -> None:
        gate.wait(HANGS)

    def work(rank: float) -> None:
        worked.append((rank, threading.get_ident()))

    told: list[float] = []
    for _ in range(THREADS):
        threads.compute(-1, wait, lambda: over(-1))
    for rank in (3.0, 1.0, 5.0, 1.0, 0.0):
        threads.compute(rank, partial(work, rank), partial(over, rank))
    gate.set()
    async with asyncio.timeout(HANGS):
        await done.wait()
    assert sorted(told) == [-1] * THREADS + [0, 1, 1, 3, 5]
    assert here not in {thread for _, thread in worked}
    begun = [rank for rank, _ in worked]
    assert max(begun[:2]) <= 1, "two threads may tell in any order, but they take by rank"
    threads.close()


async def test_without_a_thread_the_loop_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_more)
    threads, done, worked = ThreadPool(), asyncio.Event(), []
    threads.compute(0, lambda: worked.append(threading.get_ident()), done.set)
    await done.wait()
    assert worked == [threading.get_ident()]
    threads.close()
