"""Applications: what the API calls a tenant."""

from datetime import datetime
from typing import Annotated

import orjson
from pydantic import Field

from webhookd.ids import new_id
from webhookd.store import tenants
from webhookd.store.tenants import Tenant, Wanted
from webhookd.web import lists
from webhookd.web.operation import Answer, Call
from webhookd.web.problem import Problem, conflict, not_found
from webhookd.web.shapes import Given, Metadata, Name, Ordered, Page, Query, Rate, Shape, Word

DEFAULT = "app_" + "0" * 27  # whose events have no tenant


class ApplicationIn(Given):
    """An application."""

    name: Name
    """What people see."""
    uid: Word | None = None
    """The caller's own id for it, which paths take as well. Producers write it into `tenant` of the outbox."""
    metadata: Metadata = Field(default={})
    """Whatever its owner wants to keep with it."""
    throttle_rate: Rate | None = None
    """Attempts a second to all of its endpoints together; the same as rateLimit. It is kept, and not yet held to."""
    rate_limit: Rate | None = None
    """The older name of throttleRate."""

    @property
    def rate(self) -> int | None:
        """Under whichever name."""
        return self.throttle_rate if self.throttle_rate is not None else self.rate_limit


class ApplicationPatch(Given):
    """What is to be different; null clears."""

    name: Name | None = None
    uid: Word | None = None
    metadata: Metadata | None = None
    throttle_rate: Annotated[int, Field(ge=0, le=65_535)] | None = None
    rate_limit: Annotated[int, Field(ge=0, le=65_535)] | None = None


class ApplicationOut(Shape):
    """An application."""

    id: str
    uid: str | None
    name: str
    metadata: dict[str, str]
    throttle_rate: int | None
    rate_limit: int | None
    created_at: datetime
    updated_at: datetime


class ApplicationPage(Page[ApplicationOut]):
    """A page of applications."""


class Creation(Query):
    """How to make one."""

    get_if_exists: bool = False
    """Answer 200 with the application that has this uid, instead of 409."""


def shown(tenant: Tenant) -> ApplicationOut:
    """As its owner sees it."""
    return ApplicationOut(
        id=tenant.id,
        uid=tenant.uid,
        name=tenant.name,
        metadata=orjson.loads(tenant.metadata),
        throttle_rate=tenant.rate,
        rate_limit=tenant.rate,
        created_at=tenant.created_at,
        updated_at=tenant.updated_at,
    )


async def all_of(call: Call) -> Answer:
    """A page of them."""
    query: Ordered = call.query
    at = lists.place(query)
    wanted = Wanted(query.limit, at.after, (query.order == "descending") is not at.back)
    rows, more = lists.page(await tenants.page(call.connection, wanted), query.limit, at)
    iterator, before, done = lists.iterators([each.id for each in rows], more, at)
    data = [shown(each) for each in rows]
    return Answer(200, ApplicationPage(data=data, iterator=iterator, prev_iterator=before, done=done))


async def create(call: Call) -> Answer:
    """Make one, or give the one that has its uid, where that is wanted."""
    given: ApplicationIn = call.body
    if given.uid is not None and call.query.get_if_exists and (found := await tenants.find(call.connection, given.uid)):
        return Answer(200, shown(found), found.id)
    made = await _made(call, given, given.uid)
    return Answer(201, shown(made), made.id)


async def get(call: Call) -> Answer:
    """One."""
    return Answer(200, shown(call.of))


async def upsert(call: Call) -> Answer:
    """Have it be like this, whether it is there or not."""
    given: ApplicationIn = call.body
    named = call.path["app_id"]
    found = await tenants.find(call.connection, named)
    if found is None:
        if given.uid not in (None, named):
            raise conflict(f"The path says {named} and the body another uid; leave out one of them.")
        if named.startswith("app_"):
            raise not_found("application")
        made = await _made(call, given, _uid_of_path(named))
        return Answer(201, shown(made), made.id)
    uid = given.uid if "uid" in given.model_fields_set or found.uid != named else found.uid
    changed = await _changed(call, found, uid, given.name, given.metadata, given.rate)
    return Answer(200, shown(changed), changed.id)


async def patch(call: Call) -> Answer:
    """Change what is said, and nothing else."""
    given: ApplicationPatch = call.body
    tenant, said = call.of, given.model_fields_set
    rate = tenant.rate
    if said & {"throttle_rate", "rate_limit"}:
        rate = (given.throttle_rate if "throttle_rate" in said else given.rate_limit) or None  # 0 is none, as theirs
    changed = await _changed(
        call,
        tenant,
        given.uid if "uid" in said else tenant.uid,
        tenant.name if given.name is None else given.name,
        orjson.loads(tenant.metadata) if given.metadata is None else given.metadata,
        rate,
    )
    return Answer(200, shown(changed), changed.id)


async def delete(call: Call) -> Answer:
    """End it."""
    if call.of.id == DEFAULT:
        raise conflict("The default application stays: it is whose events have no tenant.", "read_only")
    await tenants.end(call.connection, call.of.id)
    return Answer(204, None, call.of.id)


async def again(call: Call, made: str | None, status: int) -> Answer:
    """The one that was made."""
    found = await tenants.find(call.connection, made or "")
    if found is None:
        raise not_found("application")
    return Answer(status, shown(found), made)


async def got_or_made(call: Call, given: ApplicationIn) -> Tenant:
    """The one with this uid, made if it is not there."""
    if given.uid is not None and (found := await tenants.find(call.connection, given.uid)):
        return found
    return await _made(call, given, given.uid)


async def _made(call: Call, given: ApplicationIn, uid: str | None) -> Tenant:
    if uid is not None and (uid.startswith("app_") or await tenants.is_taken(call.connection, uid)):
        raise _taken(uid)
    made = await tenants.add(call.connection, new_id("app_"), uid, given.name, orjson.dumps(given.metadata), given.rate)
    if made is None:
        raise _taken(uid or "")
    return made


async def _changed(
    call: Call, tenant: Tenant, uid: str | None, name: str, metadata: dict[str, str], rate: int | None
) -> Tenant:
    if uid != tenant.uid:
        if tenant.id == DEFAULT:
            raise conflict("The default application keeps its uid.", "read_only")
        if uid is not None and (uid.startswith("app_") or await tenants.is_taken(call.connection, uid, tenant.id)):
            raise _taken(uid)
    changed = await tenants.change(call.connection, tenant.id, uid, name, orjson.dumps(metadata), rate)
    if changed is None:
        raise not_found("application")
    return changed


def _uid_of_path(named: str) -> str:
    try:
        return ApplicationIn.model_validate({"name": "x", "uid": named}).uid or ""
    except ValueError:
        raise not_found("application") from None


def _taken(uid: str) -> Problem:
    return conflict(f"The uid {uid} is another application's, or what producers write for another; choose another.")
