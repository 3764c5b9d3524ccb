"""Who has died on this machine is buried, and nobody else."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from tests.waiting import until
from webhookd.engine.neighbours import ASK_EVERY, Neighbours
from webhookd.errors import StoreForbidden, StoreUnavailable
from webhookd.policy.liveness import Process, Seen, Stat

HERE = "host boot pid:[1] time:[1]"
US = Process(HERE, 10, 5)


class Machine:
    """A registry, and what is to be seen of its processes."""

    def __init__(self) -> None:
        self.rows: dict[int, Process] = {1: Process(HERE, 11, 6), 2: Process(HERE, 12, 7)}
        self.seen: dict[int, Seen] = {11: Stat(11, "S", 3, 6), 12: Stat(12, "T", 3, 7)}
        self.buried: list[tuple[list[int], float]] = []
        self.asked: list[tuple[str, int]] = []
        self.told = 0
        self.looks = 0
        self.troubles: list[Exception] = []

    async def neighbours(self, machine: str, daemon: int) -> list[tuple[int, Process]]:
        self.asked.append((machine, daemon))
        if self.troubles:
            raise self.troubles.pop(0)
        return list(self.rows.items())

    async def bury(self, daemons: Sequence[int], longest_lease: float) -> list[int]:
        if self.troubles:
            raise self.troubles.pop(0)
        self.buried.append((list(daemons), longest_lease))
        return [daemon for daemon in daemons if self.rows.pop(daemon, None)]

    def see(self, pid: int) -> Seen:
        self.looks += 1
        return self.seen.get(pid, "absent")

    def tell(self) -> None:
        self.told += 1


@asynccontextmanager
async def looking(machine: Machine, us: Process | None = US) -> AsyncIterator[Neighbours]:
    made = Neighbours(machine, us, machine.see, lambda: 45.0, look_seconds=0.01)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(made.run(3, machine.tell))
        yield made
        task.cancel()


@pytest.fixture
def machine() -> Machine:
    return Machine()


async def test_the_living_are_left_alone_and_a_death_is_told_once(machine: Machine) -> None:
    async with looking(machine):
        await until(lambda: machine.looks > 6 * ASK_EVERY, "a few looks at both")
        assert machine.buried == []
        del machine.seen[11]
        await until(lambda: machine.told, "the death to be told")
        asked = len(machine.asked)
        await until(lambda: len(machine.asked) > asked + 2, "a few more looks")
    assert machine.buried == [([1], 45.0)]
    assert machine.told == 1
    assert set(machine.asked) == {(HERE, 3)}


async def test_who_was_buried_by_another_is_not_told_again(machine: Machine) -> None:
    made = Neighbours(machine, US, machine.see, lambda: 45.0)
    await made.ask()
    machine.rows.clear()
    machine.seen.clear()
    await made.bury()
    await made.bury()
    assert machine.buried == [([1, 2], 45.0)]
    assert machine.told == 0


async def test_it_goes_on_when_the_database_comes_back(machine: Machine) -> None:
    machine.troubles = [StoreUnavailable("away"), StoreUnavailable("away")]
    async with looking(machine):
        del machine.seen[12]
        await until(lambda: machine.buried == [([2], 45.0)], "the death to be told")


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (StoreForbidden("permission denied for table daemon"), "permission denied for table daemon"),
        (ValueError("odd"), "a bug of webhookd in its watch over neighbours: ValueError; the log has more"),
    ],
)
async def test_what_keeps_it_from_looking_is_its_problem_meanwhile(
    machine: Machine, trouble: Exception, said: str
) -> None:
    """A bug as well, which ends nothing."""
    machine.troubles = [trouble] * 3
    async with looking(machine) as made:
        await until(lambda: made.setbacks.sentence == f"its watch over neighbours waits: {said}", "it says so")
        await until(lambda: not made.setbacks.problem, "it is over")


async def test_who_does_not_know_itself_knows_nobody(machine: Machine) -> None:
    machine.seen.clear()
    made = Neighbours(machine, None, machine.see, lambda: 45.0)
    await made.ask()
    await made.bury()
    await made.run(3, machine.tell)
    assert not machine.asked
    assert not machine.buried
