"""Whether a daemon's process, as its row describes it, is known to be dead. A living one must never be taken for it."""

from typing import Final, Literal, NamedTuple

_DEAD: Final = ("Z", "X", "x")  # a zombie, or past it


class Process(NamedTuple):
    """A process for as long as its machine runs.

    `machine` is the host, its boot, and the namespaces in which a pid and the time of a start mean what they say.
    """

    machine: str
    pid: int
    started: int  # ticks since the machine booted


class Stat(NamedTuple):
    """What the kernel says of a process."""

    pid: int
    state: str
    threads: int
    started: int


# What was seen of a pid; None when it exists, or may, and nothing can be read of it.
Seen = Stat | Literal["absent"] | None


def stat_of(text: str) -> Stat | None:
    """The fields of /proc/PID/stat that count; None for what does not look like that."""
    head, _, tail = text.rpartition(")")  # a program's name may hold anything, also blanks and parentheses
    fields = tail.split()
    try:
        return Stat(int(head.partition(" ")[0]), fields[0], int(fields[17]), int(fields[19]))
    except (ValueError, IndexError):
        return None


def is_dead(process: Process, seen: Seen) -> bool:
    """True when what was seen of its pid, on its machine, proves that this process is no more.

    A frozen one is alive, and so is one of which nothing can be read.
    """
    if seen is None:
        return False
    if seen == "absent":
        return True
    # The first thread may be gone while others run on.
    return seen.started != process.started or (seen.state in _DEAD and seen.threads <= 1)
