"""What a receiver does to a connection, or says for later, changes nothing about the requests that follow."""

import pytest

from tests.fault.siege import Besiege

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

EVENTS = 300
ROUNDS = 5


async def test_a_receiver_that_closes_after_each_answer_without_saying_so_costs_no_attempt(besiege: Besiege) -> None:
    async with besiege("closing", "dropping") as siege:
        async with siege.others():
            events = await siege.attack(EVENTS)
            await siege.met(lambda attempts: len(attempts) >= EVENTS, "an attempt of each event")
        found = await siege.attempts()
        closed, dropped = [len((await siege.asked(name)).requests) for name in ("closing", "dropping")]
    for attempts in found.values():
        assert {each.verdict for each in attempts} == {200}
        assert sorted(each.event_id for each in attempts) == sorted(events)
    assert closed == EVENTS
    assert dropped > EVENTS, "some were sent once more, within their attempt"


async def test_a_success_that_nobody_asked_for_answers_no_later_request(besiege: Besiege) -> None:
    async with besiege("forged_at_once", "forged_later", retry={"first": "1h"}) as siege:
        expected: list[int | str] = []
        for number in range(1, ROUNDS + 1):
            for says, verdict in (("fine", 200), ("fail", "http_500")):
                expected.append(verdict)
                await siege.attack(1, f'{{"answer": "{says}"}}')
                count = len(expected)
                await siege.met(lambda attempts: len(attempts) >= count, f"{says} {number} is answered")  # noqa: B023
                for name in siege.paths:
                    await siege.forged(name, count)
        found = await siege.attempts()
    assert {name: [each.verdict for each in attempts] for name, attempts in found.items()} == {
        "forged_at_once": expected,
        "forged_later": expected,
    }


async def test_a_cookie_does_not_come_back(besiege: Besiege) -> None:
    async with besiege("cookie") as siege:
        for number in range(1, 4):
            await siege.attack()
            await siege.met(lambda attempts: len(attempts) >= number, "it is delivered")  # noqa: B023
        requests = (await siege.asked("cookie")).requests
    assert len(requests) == 3
    assert all("webhook-id" in request.lower() for request in requests)
    assert not any("cookie:" in request.lower() for request in requests)


async def test_a_redirect_is_not_followed(besiege: Besiege) -> None:
    async with besiege("redirect") as siege:
        await siege.attack()
        await siege.met(lambda attempts: len(attempts) >= 3, "it is tried again")
        attempts = (await siege.attempts())["redirect"]
        assert {each.verdict for each in attempts} == {"http_307"}
        assert len((await siege.asked("redirect")).requests) >= 3
        assert (await siege.asked("redirect", "/elsewhere")).requests == []
