"""Threads that compute what would hold up the loop."""

import asyncio
import itertools
import queue
import threading
from collections.abc import Callable
from contextlib import suppress

THREADS = 2

_Work = tuple[float, int, Callable[[], None], Callable[[], None]]


class ThreadPool:
    """Runs work on threads of its own, that of the smallest rank first; of equal ones the first that came."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._work: queue.PriorityQueue[_Work] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._made = 0

    def compute(self, rank: float, work: Callable[[], None], over: Callable[[], None]) -> None:
        """Run `work`, which raises nothing, in a thread, and then `over` on the loop."""
        if self._made < THREADS:
            try:
                threading.Thread(target=self._run, name=f"compute-{self._made + 1}", daemon=True).start()
                self._made += 1
            except RuntimeError:  # no thread more for this process: those that there are have to do, or the loop
                if not self._made:
                    work()
                    self._loop.call_soon(over)
                    return
        self._work.put((rank, next(self._numbers), work, over))

    def close(self) -> None:
        """End the threads when they have nothing to do any longer."""
        for _ in range(self._made):
            self._work.put((float("inf"), next(self._numbers), _nothing, _nothing))

    def _run(self) -> None:
        while (asked := self._work.get())[2] is not _nothing:
            _, _, work, over = asked
            work()
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(over)
            del asked, work, over  # or what was computed last would live on


def _nothing() -> None:
    """Says that there is no more."""
