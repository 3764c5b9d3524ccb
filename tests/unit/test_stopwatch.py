"""The stopwatch of the tests counts what is ours, and nothing else."""

import os
import subprocess
import sys
import time

from tests.stopwatch import Stopwatch

WORK = 0.3  # seconds


def work() -> None:
    """Use a CPU for so long."""
    began = time.thread_time()
    while time.thread_time() - began < WORK:
        pass


def test_work_and_sleep_count() -> None:
    watch = Stopwatch()
    work()
    assert watch.seconds >= WORK * 0.99
    watch = Stopwatch()
    time.sleep(WORK)
    assert watch.seconds >= WORK * 0.9


def test_the_work_of_others_on_our_cpu_does_not() -> None:
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        with subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=-1) as other:
            assert other.stdout is not None
            try:
                other.stdout.readline()
                began, watch = time.monotonic(), Stopwatch()
                work()
                took = watch.seconds
                passed = time.monotonic() - began
            finally:
                other.kill()
    finally:
        os.sched_setaffinity(0, cpus)
    assert passed > 1.5 * WORK, "they shared it"
    assert took < 1.3 * WORK
    assert watch.left_out > 0.3 * WORK
