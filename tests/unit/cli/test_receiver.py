"""The local receiver: it verifies, reports every request, and behaves as it is told."""

import asyncio
import io
import itertools
import time
from collections.abc import Mapping

import aiohttp
import pytest

from webhookd.cli.receiver import Behaviour, Received, local_receiver
from webhookd.message.signing import new_secret, parse_secret, standard

SECRET = parse_secret(new_secret())
BODY = b'{"n": 1.10}'


def signed(body: bytes = BODY, event_id: str = "evt_1", at: float | None = None) -> dict[str, str]:
    timestamp = int(time.time() if at is None else at)
    proof = standard((SECRET,), {"webhook-id": event_id}, timestamp, body)
    return {"webhook-id": event_id, "webhook-timestamp": str(timestamp), **dict(proof)}


async def post(url: str, headers: Mapping[str, str], body: bytes = BODY) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=io.BytesIO(body), headers=headers) as response,
    ):
        return response.status, await response.text()


async def test_a_request_that_is_signed_well_is_accepted_and_reported_as_it_came() -> None:
    got: list[Received] = []
    async with local_receiver((SECRET,), got.append, random=lambda: 0.5) as url:
        assert await post(f"{url}/orders/new", {**signed(), "X-Other": "Value"}) == (200, "")
    (received,) = got
    assert (received.path, received.body, received.problem, received.status) == ("/orders/new", BODY, None, 200)
    assert received.headers["webhook-id"] == "evt_1"
    assert received.headers["x-other"] == "Value"


@pytest.mark.parametrize(
    ("age", "body", "reason"),
    [
        (None, BODY, "the header webhook-id is missing"),
        (0, b"{}", "no signature matches"),
        (3600, BODY, "in the past"),
    ],
)
async def test_a_request_that_proves_nothing_is_refused_with_the_reason(
    age: float | None, body: bytes, reason: str
) -> None:
    headers = {} if age is None else signed(at=time.time() - age)
    got: list[Received] = []
    async with local_receiver((SECRET,), got.append, random=lambda: 0.5) as url:
        status, text = await post(f"{url}/", headers, body)
    assert status == 401
    assert reason in text
    assert [(received.problem, received.status) for received in got] == [(text, 401)]


async def test_without_keys_everything_is_accepted() -> None:
    got: list[Received] = []
    async with local_receiver((), got.append, random=lambda: 0.5) as url:
        assert (await post(f"{url}/", {}))[0] == 200
    assert got[0].problem is None


async def test_a_flaky_path_fails_in_its_share() -> None:
    got: list[Received] = []
    chances = itertools.cycle([0.1, 0.3, 0.9])
    async with local_receiver(
        (SECRET,), got.append, {"/flaky": Behaviour(failing=0.3)}, random=lambda: next(chances)
    ) as url:
        statuses = [(await post(f"{url}/flaky", signed()))[0] for _ in range(6)]
    assert statuses == [500, 200, 200] * 2
    assert [received.status for received in got] == statuses


async def test_a_slow_path_takes_its_time_and_the_others_do_not() -> None:
    got: list[Received] = []
    async with local_receiver((SECRET,), got.append, {"/slow": Behaviour(delay=0.3)}, random=lambda: 0.5) as url:
        started = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            slow = tasks.create_task(post(f"{url}/slow", signed()))
            assert (await post(f"{url}/healthy", signed()))[0] == 200
            assert not slow.done()
        assert time.monotonic() - started >= 0.3
    assert slow.result() == (200, "")


async def test_a_hanging_path_is_reported_never_answers_and_does_not_keep_the_sink_from_closing() -> None:
    got: asyncio.Queue[Received] = asyncio.Queue()
    hang = {"/hang": Behaviour(hangs=True)}
    async with (
        asyncio.timeout(5),
        asyncio.TaskGroup() as tasks,
        local_receiver((SECRET,), got.put_nowait, hang, random=lambda: 0.5) as url,
    ):
        asking = tasks.create_task(refused(f"{url}/hang"))
        assert (await got.get()).status is None
        assert not asking.done()


async def refused(url: str) -> None:
    with pytest.raises(aiohttp.ClientError):
        await post(url, signed())


async def test_a_body_of_many_megabytes_is_taken() -> None:
    got: list[Received] = []
    body = b"x" * (8 * 1024 * 1024)
    async with local_receiver((SECRET,), got.append, random=lambda: 0.5) as url:
        assert (await post(f"{url}/", signed(body), body))[0] == 200
    assert got[0].body == body
