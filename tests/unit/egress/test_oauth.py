"""Tokens: one question for all who wait, renewal before the end, and servers of tokens that fail or lie."""

import asyncio
import itertools
import json
from base64 import b64encode
from typing import Any
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.egress import oauth
from webhookd.egress.oauth import Token, Tokens, asked, token_in
from webhookd.exchange import NoResponse, Request, Response
from webhookd.model import Grant

SERVER = "https://login.example.com/token"
GRANT = Grant(SERVER, "webhookd", "fake:secret%")
HOOK = Request("https://hooks.example.com/", {"webhook-id": "evt_1"}, b"{}", 20.0, None, GRANT)
NO_TOKEN = NoResponse("auth_error")

Answer = Response | NoResponse


def issued(text: str = "fake-token-1", **changes: Any) -> Response:
    said = {"access_token": text, "token_type": "Bearer", "expires_in": 3600, **changes}
    return Response(200, json.dumps({name: value for name, value in said.items() if value is not None}).encode())


class Network:
    """A server of tokens and a receiver; the last of their answers stays."""

    def __init__(self) -> None:
        self.tokens: list[Answer] = [issued()]
        self.answers: list[Answer] = [Response(200)]
        self.asked: list[Request] = []
        self.sent: list[Request] = []
        self.arrived = asyncio.Event()  # a question
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, request: Request) -> Answer:
        if request.url != SERVER:
            self.sent.append(request)
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.asked.append(request)
        self.arrived.set()
        await self.gate.wait()
        return self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0]

    @property
    def shown(self) -> list[str]:
        """The tokens that the receiver saw."""
        return [request.headers["authorization"] for request in self.sent]


class Watch:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr(oauth, "time", watch)
    return watch


async def test_a_request_without_a_grant_goes_straight_through(network: Network) -> None:
    plain = HOOK._replace(grant=None)
    assert await Tokens(network).send(plain) == Response(200)
    assert (network.sent, network.asked) == ([plain], [])


async def test_a_token_is_got_once_and_shown_each_time(network: Network) -> None:
    sending = Tokens(network)
    assert [await sending.send(HOOK) for _ in range(3)] == [Response(200)] * 3
    assert network.shown == ["Bearer fake-token-1"] * 3
    assert {name: value for name, value in network.sent[0].headers.items() if name != "authorization"} == HOOK.headers
    assert len(network.asked) == 1


async def test_all_who_wait_ask_once(network: Network) -> None:
    network.gate.clear()
    sending = Tokens(network)
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(sending.send(HOOK)) for _ in range(50)]
        await network.arrived.wait()
        network.gate.set()
    assert {task.result() for task in waiting} == {Response(200)}
    assert len(network.asked) == 1


async def test_one_that_is_cancelled_leaves_the_question_to_the_next(network: Network) -> None:
    network.gate.clear()
    sending = Tokens(network)
    first, second = (asyncio.create_task(sending.send(HOOK)) for _ in range(2))
    await network.arrived.wait()
    first.cancel()
    network.gate.set()
    assert await second == Response(200)
    assert first.cancelled()


@pytest.mark.parametrize(
    ("expires_in", "renewed_after"), [(3600, 3570), (40, 20), (None, 270), ("600", 570), (10**9, 86370)]
)
async def test_a_token_is_renewed_before_its_end(
    network: Network, watch: Watch, expires_in: object, renewed_after: float
) -> None:
    network.tokens = [issued("one", expires_in=expires_in), issued("two")]
    sending = Tokens(network)
    await sending.send(HOOK)
    watch.now += renewed_after - 1
    await sending.send(HOOK)
    watch.now += 1
    await sending.send(HOOK)
    assert network.shown == ["Bearer one", "Bearer one", "Bearer two"]


async def test_a_receiver_that_refuses_an_old_token_gets_another_in_the_same_attempt(
    network: Network, watch: Watch
) -> None:
    network.tokens = [issued("one"), issued("two")]
    network.answers = [Response(200), Response(401), Response(202)]
    sending = Tokens(network)
    assert await sending.send(HOOK) == Response(200)
    watch.now += 61
    assert await sending.send(HOOK) == Response(202)
    assert network.shown == ["Bearer one", "Bearer one", "Bearer two"]


async def test_a_receiver_that_refuses_everything_gets_no_new_token_each_time(network: Network, watch: Watch) -> None:
    network.answers = [Response(401)]
    sending = Tokens(network)
    for _ in range(20):
        assert await sending.send(HOOK) == Response(401)
    assert len(network.asked) == 1
    watch.now += 61
    assert await sending.send(HOOK) == Response(401)
    assert len(network.asked) == 2


async def test_a_server_of_tokens_that_fails_is_asked_less_and_less(network: Network, watch: Watch) -> None:
    network.tokens = [Response(500)]
    sending = Tokens(network)
    moments: list[float] = []
    for _ in range(1200):
        before = len(network.asked)
        assert await sending.send(HOOK) == NO_TOKEN
        moments += [watch.now] * (len(network.asked) - before)
        watch.now += 0.25
    pauses = [after - before for before, after in itertools.pairwise(moments)]
    assert pauses[:6] == [1, 2, 4, 8, 16, 32]
    assert set(pauses[6:]) == {60}
    assert network.sent == []
    network.tokens = [issued()]
    watch.now += 60
    assert await sending.send(HOOK) == Response(200)


async def test_a_server_of_tokens_that_hangs_keeps_nobody_for_longer_than_the_timeout(network: Network) -> None:
    network.gate.clear()
    sending = Tokens(network)
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(sending.send(HOOK))
        await network.arrived.wait()
        assert await sending.send(HOOK._replace(timeout=0.2)) == NO_TOKEN
        network.gate.set()
    assert asking.result() == Response(200)
    assert network.asked[0].timeout == HOOK.timeout / 4


async def test_a_fault_of_ours_is_not_held_against_the_server(network: Network) -> None:
    network.tokens = [NoResponse("proxy_error", ours=True), issued()]
    sending = Tokens(network)
    assert await sending.send(HOOK) == NoResponse("proxy_error", ours=True)
    assert await sending.send(HOOK) == Response(200)


async def test_what_is_left_of_the_timeout_is_the_requests(network: Network, watch: Watch) -> None:
    slow = network.send

    async def send(request: Request) -> Answer:
        watch.now += 3 if request.url == SERVER else 0
        return await slow(request)

    network.send = send  # type: ignore[method-assign]  # the same, slower
    await Tokens(network).send(HOOK)
    assert network.sent[0].timeout == 17.0


async def test_a_server_of_tokens_that_takes_all_the_time_costs_no_attempt(network: Network, watch: Watch) -> None:
    slow = network.send

    async def send(request: Request) -> Answer:
        watch.now += 20
        return await slow(request)

    network.send = send  # type: ignore[method-assign]  # the same, slower
    assert await Tokens(network).send(HOOK) == NO_TOKEN
    assert network.sent == []


async def test_grants_that_are_gone_are_forgotten(network: Network) -> None:
    sending = Tokens(network)
    await sending.send(HOOK)
    sending.keep({GRANT})
    await sending.send(HOOK)
    assert len(network.asked) == 1
    sending.keep(())
    await sending.send(HOOK)
    assert len(network.asked) == 2


def test_the_question_proves_who_asks_in_a_header() -> None:
    request = asked(GRANT, 5.0)
    assert request.headers["authorization"] == "Basic " + b64encode(b"webhookd:fake%3Asecret%25").decode()
    assert request.content == b"grant_type=client_credentials"
    assert (request.url, request.timeout, request.whole) == (SERVER, 5.0, True)


def test_the_question_proves_who_asks_in_the_body() -> None:
    request = asked(Grant(SERVER, "id", "fake&secret", "a b", "https://api", in_body=True), 5.0)
    assert "authorization" not in request.headers
    assert parse_qs(request.content.decode()) == {
        "grant_type": ["client_credentials"],
        "client_id": ["id"],
        "client_secret": ["fake&secret"],
        "scope": ["a b"],
        "audience": ["https://api"],
    }


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (issued(), Token("fake-token-1", 3600.0)),
        (issued(token_type="bearer", expires_in=-1), Token("fake-token-1", 300.0)),
        (issued(expires_in=True), Token("fake-token-1", 300.0)),
        (issued(token_type=None), "token_type is not Bearer"),
        (issued(token_type="mac"), "token_type is not Bearer"),
        (issued("line\r\nbreak"), "no access_token"),
        (issued("\u00e9"), "no access_token"),
        (issued(""), "no access_token"),
        (Response(200, b"<html>planted</html>"), "no access_token"),
        (Response(200, b"[" * 10_000), "no access_token"),
        (Response(200, b"[1]"), "no access_token"),
        (Response(201, issued().body), "http_201"),
        (Response(302), "http_302"),
        (Response(401, b'{"error": "invalid_client", "error_description": "planted"}'), "invalid_client"),
        (Response(400, b'{"error": "planted"}'), "http_400"),
        (Response(400, b'{"error": ["planted"]}'), "http_400"),
        (NoResponse("dns_error"), "dns_error"),
    ],
)
def test_what_a_server_of_tokens_says(answer: Answer, found: Token | str) -> None:
    assert token_in(answer) == found


@given(
    st.integers(0, 999),
    st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.dictionaries(st.sampled_from(["access_token", "token_type", "expires_in", "error"]), inner),
    ).map(lambda said: json.dumps(said).encode(errors="surrogatepass")),
)
def test_nothing_that_it_says_breaks_us(status: int, body: bytes) -> None:
    found = token_in(Response(status, body))
    if isinstance(found, Token):
        assert 0 < found.seconds <= 86400
        assert found.text.isascii()
        assert found.text.isprintable()
