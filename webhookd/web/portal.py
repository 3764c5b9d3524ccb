"""The way into the portal of an application: a token of its own, and the URL that has it."""

from typing import Annotated, Final

from pydantic import Field

from webhookd.ids import new_id
from webhookd.policy.access import CAPABILITIES, Right
from webhookd.store import tokens
from webhookd.web import applications
from webhookd.web.applications import ApplicationIn
from webhookd.web.operation import Answer, Call
from webhookd.web.problem import not_found
from webhookd.web.shapes import Given, Shape, Word
from webhookd.web.tokens import Capability

DAY: Final = 86_400
VIEWS: Final = tuple(name for name, right in CAPABILITIES.items() if right is Right.LOOK)


class AccessIn(Given):
    """What may be done there, and for how long."""

    application: ApplicationIn | None = None
    """Makes the application of the path, if it is not there."""
    capabilities: Annotated[list[Capability], Field(max_length=10)] | None = None
    """What may be done; all of it without them."""
    expiry: Annotated[int, Field(ge=3_600, le=7 * DAY)] | None = 7 * DAY
    """Seconds that the token counts."""
    feature_flags: Annotated[list[Word], Field(max_length=50)] = Field(default=[])
    """Event types that have such flags are shown where one of these is among them."""
    read_only: bool = False
    """Only to look."""


class AccessOut(Shape):
    """A token, and the portal's URL with it."""

    url: str
    """Behind its #, which no browser sends, it has the token."""
    token: str


async def access(call: Call) -> Answer:
    """Let somebody in."""
    given: AccessIn = call.body
    tenant = await applications.of_path_or_made(call, given.application)
    capabilities = tuple(CAPABILITIES) if given.capabilities is None else tuple(given.capabilities)
    if given.read_only:
        capabilities = tuple(each for each in capabilities if each in VIEWS)
    new = tokens.New(
        "portal", "app-portal-access", call.caller.name, tenant.id, capabilities, given.expiry or 7 * DAY,
        given.feature_flags,
    )  # fmt: skip
    token, id_ = tokens.new_token(), new_id("tok_")
    await tokens.add(call.connection, id_, token, new)
    return Answer(200, AccessOut(url=f"{call.reached_at()}/portal#key={token}", token=token), id_)


async def again(call: Call, made: str | None, status: int) -> Answer:
    """Another token: the one that was made is kept nowhere, and was perhaps never heard of."""
    if call.tenant is None:  # it is gone since
        raise not_found("application")
    return await access(call)
