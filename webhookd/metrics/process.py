"""What every process has, by the names that all clients of Prometheus give it; nothing where there is no /proc."""

import os
import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from webhookd.metrics.exposition import Family, one

_STARTED: Final = time.time()  # near enough; a sandboxed service does not see when its machine was booted
_STATM: Final = Path("/proc/self/statm")  # in pages; the second number is what is resident (proc(5))


def process() -> Iterator[Family]:
    """CPU time, memory, descriptors and start of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu, most = usage.ru_utime + usage.ru_stime, resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield Family("process_cpu_seconds_total", "counter", "User and system CPU time.", one(cpu))
    yield Family("process_start_time_seconds", "gauge", "When it was started, in seconds since 1970.", one(_STARTED))
    yield Family("process_resident_memory_bytes", "gauge", "Resident memory.", one(_resident()))
    yield Family("process_open_fds", "gauge", "Open descriptors.", one(_open()))
    yield Family("process_max_fds", "gauge", "How many there may be.", one(most))


def _resident() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        return int(_STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return None


def _open() -> int | None:
    with suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return None
