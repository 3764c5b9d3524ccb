"""Sends requests whose receivers want a token, and gets the tokens: OAuth 2 client credentials (RFC 6749 4.4).

A token is got when the first request wants it, kept, and renewed a little before it ends. One request of a grant
asks for it, the others wait. A server of tokens that fails is left alone for a moment that grows to a minute.
"""

import asyncio
import re
import time
from base64 import b64encode
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote_plus, urlencode, urlsplit

import orjson
import structlog

from webhookd.exchange import NoResponse, Request, Response
from webhookd.model import Grant

PART = 4  # of a request's timeout is for the wait for a token, and as much for asking for one
EARLY = 30.0  # seconds before its end at which a token is renewed, if it lives for more than twice as long
LIFETIME, LIFETIME_MOST = 300.0, 86400.0  # seconds, of a token that does not say, and at most
YOUNG = 60.0  # seconds for which a receiver that refuses a new token is not believed
AGAIN_FIRST, AGAIN_MOST = 1.0, 60.0  # seconds until a server of tokens that failed is asked again

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 2.1
_ERRORS = frozenset(  # RFC 6749 5.2
    ("invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type")
) | {"invalid_scope"}
_NO_TOKEN = NoResponse("auth_error")

log = structlog.get_logger("webhookd.oauth")

Answer = Response | NoResponse


class Sender(Protocol):
    """What sends, without tokens."""

    def send(self, request: Request) -> Coroutine[Any, Any, Answer]:
        """The answer, whatever the receiver does."""


@dataclass(frozen=True, slots=True)
class Token:
    """What a receiver wants to see, and for how many seconds it is good."""

    text: str = field(repr=False)
    seconds: float


class _Held:
    """The token of a grant, and what is known of its server. All moments are of the monotonic clock."""

    def __init__(self) -> None:
        self.asking = asyncio.Lock()
        self.text = ""
        self.since = 0.0
        self.until = 0.0
        self.fails = 0
        self.ask_at = 0.0

    def good(self, now: float) -> str:
        """The token; empty when there is none that is still good."""
        return self.text if now < self.until else ""

    def take(self, token: Token, now: float) -> None:
        self.text, self.since, self.fails = token.text, now, 0
        self.until = now + token.seconds - min(EARLY, token.seconds / 2)

    def failed(self, now: float) -> None:
        self.ask_at = now + min(AGAIN_FIRST * 2**self.fails, AGAIN_MOST)
        self.fails = min(self.fails + 1, 30)

    def refused(self, text: str, now: float) -> bool:
        """Forget a token that a receiver refused; False when another would be refused too."""
        if text == self.text and now < self.since + YOUNG:
            return False
        if text == self.text:
            self.text = ""
            self.until = 0.0
        return True


class Tokens:
    """What the dispatcher sends with: as the sender, and with a token where one is wanted."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._held: dict[Grant, _Held] = {}

    def keep(self, grants: Collection[Grant]) -> None:
        """Forget the tokens and secrets of all other grants."""
        self._held = {grant: held for grant, held in self._held.items() if grant in grants}

    def send(self, request: Request) -> Coroutine[Any, Any, Answer]:
        """The answer, or `auth_error` when there is no token for it, all within the request's timeout.

        A receiver that refuses a token which is not new is asked once more, with another.
        """
        if request.grant is None:
            return self._sender.send(request)
        return self._authorized(request.grant, request)

    async def _authorized(self, grant: Grant, request: Request) -> Answer:
        end = time.monotonic() + request.timeout
        held = self._held.setdefault(grant, _Held())
        token, answer = await self._send(held, grant, request, end)
        now = time.monotonic()
        is_refused = isinstance(answer, Response) and answer.status == 401
        if is_refused and held.refused(token, now) and now < end - request.timeout / 2:
            _, answer = await self._send(held, grant, request, end)
        return answer

    async def _send(self, held: _Held, grant: Grant, request: Request, end: float) -> tuple[str, Answer]:
        token = held.good(time.monotonic()) or await self._get(held, grant, request.timeout / PART)
        if isinstance(token, NoResponse):
            return "", token
        headers = {**request.headers, "authorization": f"Bearer {token}"}
        left = end - time.monotonic()
        if left <= 0:  # the server of tokens took all of it
            return "", _NO_TOKEN
        return token, await self._sender.send(request._replace(headers=headers, timeout=left))

    async def _get(self, held: _Held, grant: Grant, seconds: float) -> str | NoResponse:
        try:
            async with asyncio.timeout(seconds):
                await held.asking.acquire()
        except TimeoutError:
            return _NO_TOKEN
        try:
            now = time.monotonic()
            if token := held.good(now):
                return token
            if now < held.ask_at:
                return _NO_TOKEN
            answer = await self._sender.send(asked(grant, seconds))
        finally:
            held.asking.release()
        if isinstance(answer, NoResponse) and answer.ours:
            return answer
        now = time.monotonic()
        found = token_in(answer)
        if isinstance(found, Token):
            held.take(found, now)
            return found.text
        held.failed(now)
        log.warning("no_token", server=urlsplit(grant.token_url).hostname, client=grant.client_id, error=found)
        return _NO_TOKEN


def asked(grant: Grant, seconds: float) -> Request:
    """The request for a token."""
    form = {"grant_type": "client_credentials", "scope": grant.scope, "audience": grant.audience}
    headers = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json"}
    if grant.in_body:
        form |= {"client_id": grant.client_id, "client_secret": grant.client_secret}
    else:  # each of them is encoded as in a form first (RFC 6749 2.3.1)
        pair = f"{quote_plus(grant.client_id)}:{quote_plus(grant.client_secret)}"
        headers["authorization"] = "Basic " + b64encode(pair.encode()).decode()
    content = urlencode({name: value for name, value in form.items() if value}).encode()
    return Request(grant.token_url, headers, content, seconds, whole=True)


def token_in(answer: Answer) -> Token | str:
    """The token in an answer (RFC 6749 5.1), or why there is none, in words of ours or of RFC 6749 5.2."""
    if isinstance(answer, NoResponse):
        return answer.code
    try:
        said = orjson.loads(answer.body)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        said = {}
    if answer.status != 200:
        error = said.get("error")
        return error if isinstance(error, str) and error in _ERRORS else f"http_{answer.status:03d}"
    text, kind = said.get("access_token"), said.get("token_type")
    if not isinstance(text, str) or not _TOKEN.fullmatch(text):
        return "no access_token"
    if not isinstance(kind, str) or kind.lower() != "bearer":
        return "token_type is not Bearer"
    return Token(text, _seconds(said.get("expires_in")))


def _seconds(expires_in: object) -> float:
    if isinstance(expires_in, str) and expires_in.isascii() and expires_in.isdigit():
        expires_in = float(expires_in[:10])
    if isinstance(expires_in, bool) or not isinstance(expires_in, (int, float)) or expires_in <= 0:
        return LIFETIME
    return min(float(expires_in), LIFETIME_MOST)
