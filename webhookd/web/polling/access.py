"""The token of a poller, which may do nothing else: there is one at a time, and those before it for a while."""

from webhookd.ids import new_id
from webhookd.store import tokens
from webhookd.store.endpoints import Made
from webhookd.store.tokens import New, Token
from webhookd.web.endpoints import finding
from webhookd.web.operation import Answer, Call
from webhookd.web.polling.shapes import PollerTokenIn, PollerTokenOut
from webhookd.web.problem import not_found


async def get(call: Call) -> Answer:
    """The newest, without what it is: that is kept nowhere."""
    found = await _of_tenant(call)
    return Answer(200, _shown(await _newest(call, found), ""))


async def rotate(call: Call) -> Answer:
    """Another one; those before it end soon."""
    given: PollerTokenIn = call.body
    found = await _of_tenant(call)
    token, id_ = tokens.new_token(), new_id("tok_")
    new = New(
        "poll", f"poller of {found.uid or found.name}", call.caller.name, call.of.id, (), given.expiry, (), found.id
    )
    await tokens.add(call.connection, id_, token, new)
    await tokens.expire_of_endpoint(call.connection, found.id, given.old_token_expiry, id_)
    return Answer(201, _shown(await _newest(call, found), token), id_)


async def again(call: Call, made: str | None, status: int) -> Answer:
    """The newest; the token itself is kept nowhere."""
    return Answer(status, _shown(await _newest(call, await _of_tenant(call)), ""), made)


async def _of_tenant(call: Call) -> Made:
    """The application's own, since a token of it sees no other. Problem 404 or 409."""
    found = await finding.found(call)
    finding.expect_polled(found)
    return found


async def _newest(call: Call, found: Made) -> Token:
    newest = await tokens.of_endpoint(call.connection, found.id)
    if newest is None:
        raise not_found("token")
    return newest


def _shown(token: Token, text: str) -> PollerTokenOut:
    return PollerTokenOut(
        token=text,
        id=token.id,
        name=token.name,
        created_at=token.created_at,
        expires_at=token.expires_at,
        scopes=["poll"],
    )
