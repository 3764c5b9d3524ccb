"""Seconds that do not pass while the machine does something else: a bound in seconds that holds beside other work."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Iterable
from pathlib import Path

import psutil

from tests.waiting import HANGS


class Stopwatch:
    """Runs from when it is made.

    What is too slow by itself, sleeps for too long or blocks the loop is as long on it as on the wall. Only the time is
    left out for which this thread stood in line for a CPU, and the processes `others`: those that are asked and
    answer in turns with it, such as a server's. (A kernel that does not tell leaves out nothing.)
    """

    def __init__(self, *others: int) -> None:
        self._files = [f"/proc/self/task/{threading.get_native_id()}/schedstat", *map(_file, others)]
        self._began = time.monotonic()
        self._waited = list(map(_waited, self._files))

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._began - self.left_out

    @property
    def left_out(self) -> float:
        """Seconds of other work since it was made."""
        waited = zip(map(_waited, self._files), self._waited, strict=True)
        return sum(max(now - then, 0.0) for now, then in waited)


async def within(seconds: float, awaited: Awaitable[object], others: Iterable[int] = ()) -> None:
    """Wait for it, which must not take longer on a stopwatch."""
    watch = Stopwatch(*others)
    await asyncio.wait_for(awaited, HANGS)
    assert watch.seconds < seconds, f"it took {watch.seconds:.3f} s"


def family(pid: int) -> list[int]:
    """The process that started this one, and all that it has started, as a server of PostgreSQL its backends."""
    parent = psutil.Process(pid).ppid()
    return [parent, *map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())]


def worked(pid: int) -> float:
    """Seconds for which that process has had a CPU."""
    return int(Path(_file(pid)).read_text().split()[0]) / 1e9


def _file(pid: int) -> str:
    return f"/proc/{pid}/schedstat"


def _waited(file: str) -> float:
    try:
        with open(file) as found:
            return int(found.read().split()[1]) / 1e9
    except OSError:
        return 0.0  # it has ended
