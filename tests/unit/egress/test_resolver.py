"""Names that do not resolve hold up none that do."""

import asyncio
import socket
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio

from tests.stopwatch import Stopwatch
from tests.waiting import HANGS
from webhookd.egress import resolver
from webhookd.egress.resolver import Resolver, Verdict


class Names:
    """What the system's resolver says: `dead` names hang until the test is over, all others are one public address."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.dead: set[str] = set()
        self.wrong: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.addresses = ["93.184.216.34"]

    def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked[host] += 1
        if host in self.dead:
            self.over.wait(20.0)
        if host in self.dead or host in self.wrong:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in self.addresses]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    found = Names()
    monkeypatch.setattr(socket, "getaddrinfo", found.getaddrinfo)
    monkeypatch.setattr(resolver, "SECONDS", 0.5)
    yield found
    found.over.set()


@pytest_asyncio.fixture
async def resolving(names: Names) -> AsyncIterator[Resolver]:
    found = Resolver(())
    yield found
    names.over.set()
    await found.close()


async def fails(resolving: Resolver, host: str) -> str:
    try:
        await resolving.resolve(host, 443)
    except OSError as error:
        return str(error)
    raise AssertionError(f"{host} was resolved")


async def test_an_answer_has_each_address_once_and_four_at_most(resolving: Resolver, names: Names) -> None:
    names.addresses = ["93.184.216.34"] * 3 + [f"93.184.216.{n}" for n in range(40, 50)]
    found = await resolving.resolve("good.example", 443)
    assert [each["host"] for each in found] == ["93.184.216.34", *(f"93.184.216.{n}" for n in (40, 41, 42))]
    assert {each["port"] for each in found} == {443}


async def test_one_denied_address_refuses_the_whole_name(resolving: Resolver, names: Names) -> None:
    names.addresses = [f"93.184.216.{n}" for n in range(40, 50)] + ["127.0.0.1"]
    with pytest.raises(Verdict, match=r"^egress_denied$"):
        await resolving.resolve("mixed.example", 443)


async def test_a_lookup_ends_in_time_though_its_thread_does_not(resolving: Resolver, names: Names) -> None:
    names.dead = {"dead.example"}
    watch = Stopwatch()
    assert await fails(resolving, "dead.example") == "dns_timeout"
    assert watch.seconds < 2.0


async def test_any_number_of_dead_names_does_not_delay_one_that_works(resolving: Resolver, names: Names) -> None:
    await resolving.resolve("good.example", 443)
    names.dead = {f"hook.dead-{n}.example" for n in range(resolver.FOR_NEW + 100)}
    async with asyncio.TaskGroup() as group:
        for name in sorted(names.dead):
            group.create_task(fails(resolving, name))
        await asyncio.sleep(0.1)
        for _ in range(20):
            watch = Stopwatch()
            await resolving.resolve("good.example", 443)
            assert watch.seconds < 0.3
    assert len(names.asked) == resolver.FOR_NEW + 1  # the others had no thread


async def test_two_hundred_dead_names_do_not_delay_one_that_is_as_new(resolving: Resolver, names: Names) -> None:
    names.dead = {f"hook.dead-{n}.example" for n in range(200)}
    async with asyncio.TaskGroup() as group:
        for name in sorted(names.dead):
            group.create_task(fails(resolving, name))
        await asyncio.sleep(0.1)
        watch = Stopwatch()
        await resolving.resolve("good.example", 443)
        assert watch.seconds < 0.3


async def test_a_dead_name_takes_one_thread_however_often_it_is_wanted(resolving: Resolver, names: Names) -> None:
    names.dead = {f"hook.dead-{n}.example" for n in range(200)}
    for _ in range(3):
        async with asyncio.TaskGroup() as group:
            for name in sorted(names.dead) * 3:
                group.create_task(_impatient(resolving, name))
    watch = Stopwatch()
    await resolving.resolve("good.example", 443)
    assert watch.seconds < 0.3
    assert sum(names.asked.values()) == 200 + 1


async def test_one_who_goes_takes_the_answer_from_nobody(resolving: Resolver, names: Names) -> None:
    names.dead = {"slow.example"}
    first, second = (asyncio.create_task(resolving.resolve("slow.example", 443)) for _ in range(2))
    await asyncio.sleep(0.05)
    first.cancel()
    names.dead = set()
    names.over.set()
    assert [each["host"] for each in await second] == names.addresses
    assert names.asked["slow.example"] == 1


async def _impatient(resolving: Resolver, name: str) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await resolving.resolve(name, 443)


STUCK = """
import asyncio, socket, time
from webhookd.egress import resolver
resolver.SECONDS = 0.1
socket.getaddrinfo = lambda *_, **__: time.sleep(600)
async def main():
    found = resolver.Resolver(())
    try:
        await found.resolve("dead.example", 443)
    except OSError as error:
        print(error)
    await found.close()
asyncio.run(main())
"""


async def test_where_no_thread_can_start_those_that_there_are_have_to_do(
    resolving: Resolver, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        with pytest.raises(Verdict, match=r"^internal$") as refused:
            await resolving.resolve("good.example", 443)
        assert refused.value.ours
    await resolving.resolve("good.example", 443)  # nothing is left of the first try
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        for number in range(3 * resolver.FOR_NEW):
            await resolving.resolve(f"name-{number}.example", 443)


async def test_a_process_ends_though_a_lookup_is_stuck() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", STUCK, stdout=asyncio.subprocess.PIPE)
    said, _ = await asyncio.wait_for(process.communicate(), HANGS)
    assert (said, process.returncode) == (b"dns_timeout\n", 0)


async def test_dead_names_leave_threads_for_new_ones(resolving: Resolver, names: Names) -> None:
    names.wrong = {f"hook.dead-{n}.example" for n in range(200)}
    for name in sorted(names.wrong):
        await fails(resolving, name)
    names.dead, names.wrong = names.wrong, set()
    async with asyncio.TaskGroup() as group:
        for name in sorted(names.dead):
            group.create_task(fails(resolving, name))
        await asyncio.sleep(0.1)
        await resolving.resolve("new.example", 443)
    assert sum(names.asked.values()) == 200 + resolver.FOR_FAILING + 1


async def test_one_domain_has_few_threads(resolving: Resolver, names: Names) -> None:
    names.dead = {f"{n}.attacker.example" for n in range(50)}
    async with asyncio.TaskGroup() as group:
        for name in sorted(names.dead):
            group.create_task(fails(resolving, name))
        await asyncio.sleep(0.1)
        await resolving.resolve("new.other.example", 443)
    assert len(names.asked) == resolver.PER_DOMAIN + 1


async def test_a_name_that_no_longer_works_is_one_of_those_that_fail(resolving: Resolver, names: Names) -> None:
    await resolving.resolve("changing.example", 443)
    names.dead = {"changing.example"}
    for _ in range(3):
        await asyncio.gather(*(fails(resolving, "changing.example") for _ in range(10)))
    assert names.asked["changing.example"] <= 1 + 10 + resolver.PER_DOMAIN
    names.dead.clear()
    names.over.set()
    await asyncio.sleep(0.1)
    await resolving.resolve("changing.example", 443)


async def test_places_are_free_again_after_each_end(resolving: Resolver, names: Names) -> None:
    names.wrong = {"wrong.example"}
    for _ in range(2 * resolver.FOR_NEW):
        assert "Temporary failure" in await fails(resolving, "wrong.example")
    for number in range(2 * resolver.FOR_NEW):
        await resolving.resolve(f"name-{number}.example", 443)
