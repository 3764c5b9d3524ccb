"""Processes of this machine: ourselves, and what the kernel says of others (Linux; elsewhere nothing is known)."""

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from webhookd.policy.liveness import Process, Seen, Stat, stat_of

PROC = Path("/proc")
BOOT = "BOOT_ID"  # where the unit hides all of /proc but processes, it says what boot this is


def ourselves(proc: Path = PROC, environment: Mapping[str, str] = os.environ) -> Process | None:
    """This process, or None where it cannot be told from others for sure."""
    stat = _stat(proc / "self")
    boot = _line(proc / "sys/kernel/random/boot_id") or environment.get(BOOT, "")
    pids = _namespace(proc, "pid")
    # A /proc of another namespace, where our pid is somebody else's, would make the dead of the living.
    if stat is None or stat.pid != os.getpid() or not boot or not pids:
        return None
    # By the host too, as a copy of a running machine is of the same boot; starts are told by the namespace's clock.
    machine = (socket.gethostname(), boot.replace("-", ""), pids, _namespace(proc, "time"))
    return Process(" ".join(machine), stat.pid, stat.started)


def see(pid: int, proc: Path = PROC, kill: Callable[[int, int], None] = os.kill) -> Seen:
    """What is to be seen of the process that has this pid now."""
    if pid <= 0:
        return None
    try:
        kill(pid, 0)
    except ProcessLookupError:
        return "absent"
    except OSError:
        pass  # it is another user's, or we may not ask
    return _stat(proc / str(pid))


def _stat(directory: Path) -> Stat | None:
    return stat_of(_line(directory / "stat"))


def _line(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""


def _namespace(proc: Path, kind: str) -> str:
    try:
        return str((proc / "self/ns" / kind).readlink())
    except OSError:
        return ""  # before Linux 5.6 there is none of time
