"""What becomes of a request that `webhookd listen --forward-to` passes on, whatever its target does."""

from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aioresponses import aioresponses

from webhookd.cli.listen.forward import client, passing
from webhookd.cli.receiver import Answer, Received

TARGET = "http://127.0.0.1:3000/hooks?a=%2F"
HEADERS = {"host": "127.0.0.1:1", "content-length": "2", "webhook-id": "evt_1", "cookie": "a=b"}
RECEIVED = Received("/", HEADERS, b"{}", None, 200, "PUT")
NO_ANSWER = Answer(502, b"the target of --forward-to did not answer")


class Answered(aiohttp.ClientResponse):
    """As aiohttp 3.14 makes it, which wants to know who writes the request."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, stream_writer=Mock(output_size=0), **named)


class BrokenOff(Answered):
    """An answer whose body does not come."""

    async def read(self) -> bytes:
        raise aiohttp.ClientPayloadError("Response payload is not completed")


class Hanging(Answered):
    """An answer whose body comes too late."""

    async def read(self) -> bytes:
        raise TimeoutError


@pytest.fixture
def target() -> Iterator[aioresponses]:
    """Everything that a ClientSession is asked for; what is not foreseen here is refused."""
    with aioresponses() as target:
        yield target


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with client() as session:
        yield session


def answers(target: aioresponses, status: int = 200, kind: type[Answered] = Answered, **how: Any) -> None:
    target.put(TARGET, status=status, response_class=kind, **how)


async def test_the_request_goes_on_without_what_is_about_its_connection(
    target: aioresponses, session: aiohttp.ClientSession
) -> None:
    answers(target, 202, body=b"seen", content_type="text/html")
    assert await passing(session, TARGET)(RECEIVED) == Answer(202, b"seen", {"content-type": "text/html"})
    (((method, _), (call,)),) = target.requests.items()  # its keys are requoted
    how = call.kwargs
    assert method == "PUT"
    assert how["headers"] == {"webhook-id": "evt_1", "cookie": "a=b"}
    assert how["data"] == b"{}"
    assert how["allow_redirects"] is False


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (aiohttp.ClientConnectionError("Cannot connect to host"), "Cannot connect to host"),
        (aiohttp.ServerDisconnectedError(), "Server disconnected"),
        (ConnectionResetError(), "ConnectionResetError"),
        (TimeoutError(), "it took over 30 s"),
        (aiohttp.ServerTimeoutError(), "it took over 30 s"),
        (UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogates not allowed"), "surrogates not allowed"),
    ],
)
async def test_a_target_that_does_not_answer(
    target: aioresponses,
    session: aiohttp.ClientSession,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    why: str,
) -> None:
    """Refused, hung up, or too slow."""
    target.put(TARGET, exception=error)
    assert await passing(session, TARGET)(RECEIVED) == NO_ANSWER
    said = capsys.readouterr().err
    assert said.startswith("webhookd: --forward-to did not answer, so 502 goes back: ")
    assert why in said
    assert said.count("\n") == 1


async def test_it_is_asked_again_after_it_failed(
    target: aioresponses, session: aiohttp.ClientSession, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = passing(session, TARGET)
    target.put(TARGET, exception=aiohttp.ClientConnectionError("refused"))
    answers(target, 200, body=b"back")
    assert [(await ask(RECEIVED)).status for _ in range(2)] == [502, 200]
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("status", [204, 400, 410, 500, 503])
async def test_its_answer_is_given_back_whatever_it_is(
    target: aioresponses, session: aiohttp.ClientSession, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    headers = {"Retry-After": "7", "Set-Cookie": "a=b", "Content-Encoding": "identity"}
    answers(target, status, body=b"no" if status >= 400 else b"", content_type="text/css", headers=headers)
    answer = await passing(session, TARGET)(RECEIVED)
    assert answer.status == status
    assert answer.headers == {"content-type": "text/css", "retry-after": "7"}
    assert capsys.readouterr().err == "", "it answered"


async def test_a_redirect_is_given_back_and_not_followed(target: aioresponses, session: aiohttp.ClientSession) -> None:
    answers(target, 307, headers={"Location": "http://127.0.0.1:3000/elsewhere"})
    target.put("http://127.0.0.1:3000/elsewhere", exception=AssertionError("it was followed"))
    answer = await passing(session, TARGET)(RECEIVED)
    assert answer.status == 307
    assert answer.headers["location"] == "http://127.0.0.1:3000/elsewhere"


@pytest.mark.parametrize(("kind", "why"), [(BrokenOff, "not completed"), (Hanging, "it took over 30 s")])
@pytest.mark.parametrize("status", [200, 503])
async def test_the_status_line_decides_though_the_body_breaks_off(
    target: aioresponses,
    session: aiohttp.ClientSession,
    capsys: pytest.CaptureFixture[str],
    kind: type[Answered],
    why: str,
    status: int,
) -> None:
    answers(target, status, kind, headers={"Retry-After": "7"})
    answer = await passing(session, TARGET)(RECEIVED)
    assert (answer.status, answer.body, answer.headers["retry-after"]) == (status, b"", "7")
    said = capsys.readouterr().err
    assert said.startswith(f"webhookd: --forward-to answered {status}, which goes back without a body: ")
    assert why in said
