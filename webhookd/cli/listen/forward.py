"""What `webhookd listen --forward-to` does with a request: pass it on, and give back what is answered there."""

from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp
from yarl import URL

from webhookd.cli.receiver import Answer, Received
from webhookd.cli.tables import say

SECONDS = 30.0  # longer than a sender's default patience
NOT_PASSED_ON: Final = frozenset(
    ("host", "content-length", "connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect")
)  # they are about one connection; the client writes its own
PASSED_BACK: Final = ("content-type", "retry-after", "location")  # what a sender may look at, and who looks on


def client() -> aiohttp.ClientSession:
    """What asks the target; used with `async with`."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS), cookie_jar=aiohttp.DummyCookieJar())


def passing(session: aiohttp.ClientSession, url: str) -> Callable[[Received], Awaitable[Answer]]:
    """Asks the target for its answer; one that does not give any is told on standard error, and answered with 502.

    As for webhookd itself the status line decides: it goes back though the rest never came.
    """
    target = URL(url, encoded=True)

    async def pass_on(received: Received) -> Answer:
        headers = {name: text for name, text in received.headers.items() if name not in NOT_PASSED_ON}
        try:
            async with session.request(
                received.method, target, data=received.body, headers=headers, allow_redirects=False
            ) as response:
                body = await _whole(response)
                found = {name: response.headers.get(name, "") for name in PASSED_BACK}
                back = {name: text for name, text in found.items() if text and text.isascii()}
                return Answer(response.status, body, {"content-type": "text/plain", **back})
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError too
            _tell(f"did not answer, so 502 goes back: {_why(error)}")
            return Answer(502, b"the target of --forward-to did not answer")

    return pass_on


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.read()
    except (aiohttp.ClientError, OSError) as error:
        _tell(f"answered {response.status}, which goes back without a body: {_why(error)}")
        return b""


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"it took over {SECONDS:.0f} s"
    return str(error) or type(error).__name__


def _tell(what: str) -> None:
    say(f"webhookd: --forward-to {what}", err=True)
