"""Tokens, as an administrator makes and ends them by the API."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from webhookd.ids import new_id
from webhookd.policy.access import Caller
from webhookd.store import tenants
from webhookd.store import tokens as store
from webhookd.store.tokens import New, Token
from webhookd.web.operation import Answer, Call
from webhookd.web.problem import Invalid, Wrong, not_found
from webhookd.web.shapes import Given, Query, Shape, Text, Word

Role = Literal["admin", "operator", "read", "producer", "portal"]
Capability = Literal["ViewBase", "ViewEndpointSecret", "ManageEndpointSecret", "ManageEndpoint", "CreateAttempts"]


class TokenIn(Given):
    """What a token is to be."""

    role: Role
    """What may be done with it."""
    name: Annotated[Text, Field(min_length=1, max_length=256)]
    """What it is for."""
    app_id: Word | None = None
    """The application whose things are all that it sees."""
    capabilities: Annotated[list[Capability], Field(max_length=10)] = Field(default=[])
    """What a portal's may do."""
    expiry: Annotated[int, Field(ge=60, le=10 * 366 * 86_400)] | None = None
    """Seconds that it counts; without it, until it is revoked."""

    @model_validator(mode="after")
    def _a_portal_is_somebodys(self) -> Self:
        if self.role == "portal" and self.app_id is None:
            raise ValueError("a portal's token wants appId")
        if self.role != "portal" and self.capabilities:
            raise ValueError("capabilities go with the role portal")
        return self


class TokenOut(Shape):
    """A token, without what it is."""

    id: str
    role: str
    name: str
    app_id: str | None
    capabilities: list[str]
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None


class TokenMade(Shape):
    """A token, which is shown this once."""

    id: str
    token: str | None
    """It; null where the same request has been answered before."""


class TokenList(Shape):
    """All tokens."""

    data: list[TokenOut]
    done: bool


class Listing(Query):
    """Which of them."""

    include_ended: bool = False
    """Those that count no longer, too."""


async def create(call: Call) -> Answer:
    """Make one."""
    given: TokenIn = call.body
    tenant = None
    if given.app_id is not None and (tenant := await tenants.find(call.connection, given.app_id)) is None:
        raise Invalid([Wrong(("body", "appId"), "names no application")])
    token, id_ = store.new_token(), new_id("tok_")
    new = New(given.role, given.name, call.caller.name, tenant and tenant.id, given.capabilities, given.expiry)
    await store.add(call.connection, id_, token, new)
    return Answer(201, TokenMade(id=id_, token=token), id_)


async def all_of(call: Call) -> Answer:
    """Those that count, 1,000 at most."""
    found = await store.all_of(call.connection, ended=call.query.include_ended)
    return Answer(200, TokenList(data=[_shown(each) for each in found], done=True))


async def revoke(call: Call) -> Answer:
    """Have one count no longer."""
    if not await store.revoke(call.connection, call.path["token_id"], call.caller.name):
        raise not_found("token")
    return Answer(204, None, call.path["token_id"])


async def again(call: Call, made: str | None, status: int) -> Answer:
    """Its id; the token itself is kept nowhere."""
    return Answer(status, TokenMade(id=made or "", token=None), made)


def caller_of(known: store.Known) -> Caller:
    """Who has a token that counts."""
    name = f"{known.name} ({known.id})"
    return Caller(known.id, name, known.role, known.tenant, known.capabilities, known.feature_flags, known.endpoint)


def _shown(token: Token) -> TokenOut:
    return TokenOut(
        id=token.id,
        role=token.role,
        name=token.name,
        app_id=token.tenant,
        capabilities=list(token.capabilities),
        created_by=token.by,
        created_at=token.created_at,
        expires_at=token.expires_at,
        revoked_at=token.revoked_at,
        used_at=token.used_at,
    )
