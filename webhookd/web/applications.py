"""Applications: what the API calls a tenant."""

from datetime import datetime
from typing import Annotated, Self

import orjson
from pydantic import Field, model_validator

from webhookd.ids import new_id
from webhookd.policy.access import Right
from webhookd.store import endpoints, tenants
from webhookd.store.tenants import Tenant, Wanted
from webhookd.web import lists
from webhookd.web.operation import Answer, Call
from webhookd.web.problem import Problem, conflict, not_found
from webhookd.web.shapes import Given, Metadata, Name, Ordered, Page, Query, Rate, Shape, Uid, nulls

DEFAULT = "app_" + "0" * 27  # whose events have no tenant


class ApplicationIn(Given):
    """An application."""

    name: Name
    """What people see."""
    uid: Uid | None = None
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
    uid: Uid | None = None
    metadata: Metadata | None = None
    throttle_rate: Annotated[int, Field(ge=0, le=65_535)] | None = None
    rate_limit: Annotated[int, Field(ge=0, le=65_535)] | None = None

    @model_validator(mode="after")
    def _something_where_something_must_be(self) -> Self:
        nulls(self, "name", "metadata")
        return self


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
    if call.query.get_if_exists and given.uid is not None:
        found, is_new = await _got_or_made(call, given, given.uid)
        return Answer(201 if is_new else 200, shown(found), found.id)
    made = await _made(call, given, given.uid)
    if made is None:
        raise _taken(given.uid or "")
    return Answer(201, shown(made), made.id)


async def get(call: Call) -> Answer:
    """One."""
    return Answer(200, shown(call.of))


async def upsert(call: Call) -> Answer:
    """Have it be like this, whether it is there or not."""
    given: ApplicationIn = call.body
    named, is_new = call.path["app_id"], False
    found = await tenants.find(call.connection, named)
    if found is None:
        found, is_new = await _got_or_made(call, given, uid_of_path(call, given))
    if is_new:
        return Answer(201, shown(found), found.id)
    uid = given.uid if "uid" in given.model_fields_set or found.uid != named else found.uid
    changed = await _changed(call, found, uid, given.name, given.metadata, given.rate)
    return Answer(200, shown(changed), changed.id)


async def patch(call: Call) -> Answer:
    """Change what is said, and nothing else."""
    given: ApplicationPatch = call.body
    tenant, said = await tenants.lock(call.connection, call.of.id), given.model_fields_set
    if tenant is None:
        raise not_found("application")
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
    await endpoints.lock(call.connection)
    ended = await endpoints.end_all(call.connection, call.of.key)
    await endpoints.changed(call.connection, *ended)
    await tenants.end(call.connection, call.of.id)
    return Answer(204, None, call.of.id)


async def again(call: Call, made: str | None, status: int) -> Answer:
    """The one that was made."""
    found = await tenants.find(call.connection, made or "")
    if found is None:
        raise not_found("application")
    return Answer(status, shown(found), made)


async def of_path_or_made(call: Call, given: ApplicationIn | None) -> Tenant:
    """The one of the path, or as it is given on the way. Problem 404 without, 403 for who may not make one."""
    if call.tenant is not None:
        return call.tenant
    if given is None:
        raise not_found("application")
    if Right.TENANTS not in call.caller.rights:
        raise Problem(403, "forbidden", "This token may not create an application on the way.")
    return (await _got_or_made(call, given, uid_of_path(call, given)))[0]


async def _got_or_made(call: Call, given: ApplicationIn, uid: str) -> tuple[Tenant, bool]:
    """The living one with this uid; True when it is new. Of many that ask at once, one makes it, and all have it."""
    if found := await tenants.find(call.connection, uid):
        return found, False
    if made := await _made(call, given, uid):
        return made, True
    if found := await tenants.find(call.connection, uid):
        return found, False
    raise _taken(uid)


async def _made(call: Call, given: ApplicationIn, uid: str | None) -> Tenant | None:
    """None when another has the uid."""
    if uid is not None and (uid.startswith("app_") or await tenants.is_taken(call.connection, uid)):
        return None
    metadata = orjson.dumps(given.metadata)
    return await tenants.add(call.connection, new_id("app_"), uid, given.name, metadata, given.rate)


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


def uid_of_path(call: Call, given: ApplicationIn) -> str:
    """The uid that an application gets which is made by its path. Problem 409 where the body says another."""
    named = call.path["app_id"]
    if given.uid not in (None, named):
        raise conflict(f"The path says {named} and the body another uid; leave out one of them.")
    try:
        uid = ApplicationIn.model_validate({"name": "x", "uid": named}).uid
    except ValueError:
        uid = None
    if uid is None or uid.startswith("app_"):
        raise not_found("application")
    return uid


def _taken(uid: str) -> Problem:
    return conflict(f"The uid {uid} is another application's, or what producers write for another; choose another.")
