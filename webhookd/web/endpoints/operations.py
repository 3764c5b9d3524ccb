"""Endpoints listed, made, shown, changed and ended, each with all that is sealed of it, or not at all."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson
from pydantic.alias_generators import to_camel

from webhookd.egress.guard import url_mistake
from webhookd.ids import new_id
from webhookd.message.kept import HEADER, URL
from webhookd.message.sealing import Sealed
from webhookd.message.signing import new_secret
from webhookd.store import endpoints
from webhookd.store.endpoints import Made
from webhookd.store.tenants import Wanted
from webhookd.web import lists
from webhookd.web.endpoints import finding, specs
from webhookd.web.endpoints.shapes import EndpointIn, EndpointOut, EndpointPage, EndpointPatch, EndpointUpdate
from webhookd.web.operation import Answer, Call
from webhookd.web.problem import Invalid, Problem, Wrong, conflict, not_found
from webhookd.web.shapes import Ordered


async def all_of(call: Call) -> Answer:
    """A page of them."""
    query: Ordered = call.query
    at = lists.place(query)
    wanted = Wanted(query.limit, at.after, (query.order == "descending") is not at.back)
    rows, more = lists.page(await endpoints.page(call.connection, call.of.key, wanted), query.limit, at)
    iterator, before, done = lists.iterators([each.name for each in rows], more, at)
    data = [shown(call, each) for each in rows]
    return Answer(200, EndpointPage(data=data, iterator=iterator, prev_iterator=before, done=done))


async def create(call: Call) -> Answer:
    """Make one, with its secret, or nothing of it."""
    return await _made(call, call.body, call.body.uid)


async def get(call: Call) -> Answer:
    """One."""
    found = await finding.found(call)
    return Answer(200, shown(call, found))


async def upsert(call: Call) -> Answer:
    """Have it be like this, whether it is there or not."""
    given: EndpointUpdate = call.body
    await _enable(call, given)
    await finding.lock(call)
    found = await endpoints.find(call.connection, call.of.key, call.path["endpoint_id"])
    if found is None:
        whole = EndpointIn.model_validate(given.model_dump(exclude_unset=True))
        return await _made(call, whole, _uid_of_path(call, given.uid))
    _expect_may_shape(call, given)
    _check_retry(call, given)
    spec = {**specs.spec_of(found), **specs.said(given)}
    uid = given.uid if "uid" in given.model_fields_set else found.uid
    return await _changed(call, found, uid, spec, given.metadata, url=given.url)


async def patch(call: Call) -> Answer:
    """Change what is said, and nothing else."""
    given: EndpointPatch = call.body
    await _enable(call, given)
    await finding.lock(call)
    found, said = await finding.found(call), given.model_fields_set
    spec = {**specs.spec_of(found), **specs.said(given)}
    uid = given.uid if "uid" in said else found.uid
    metadata = orjson.loads(found.metadata) if given.metadata is None else given.metadata
    _expect_may_shape(call, given)
    _check_retry(call, given)
    return await _changed(call, found, uid, spec, metadata, url=given.url)


async def delete(call: Call) -> Answer:
    """End it."""
    await finding.lock(call)
    found = await finding.own(call)
    await endpoints.end(call.connection, found.id)
    await endpoints.changed(call.connection, found.id)
    return Answer(204, None, found.name)


async def again(call: Call, made: str | None, status: int) -> Answer:
    """The one that was made."""
    if call.tenant is None or (found := await endpoints.find(call.connection, call.tenant.key, made or "")) is None:
        raise not_found("endpoint")
    return Answer(status, shown(call, found), made)


async def _made(call: Call, given: EndpointIn, uid: str | None) -> Answer:
    finding.expect_key(call)
    _check_retry(call, given)
    said = specs.said(given)
    _check_kind(call, said, given.url)
    finding.check_shape(call, {**specs.NEW, **said}, given.headers)
    await finding.check_types(call, said["events"])
    await finding.lock(call)
    if await endpoints.count(call.connection, call.of.key) >= call.around.settings.endpoints_per_tenant:
        raise conflict("The application has as many endpoints as it may have; delete one first.", "limit_reached")
    finding.check_headers(given.headers)
    await _expect_free(call, uid, None)
    _expect_may_shape(call, given)
    name, spec = (
        new_id("ep_"),
        {**specs.NEW, **said, "url": specs.place_of(given.url), "headers": sorted(given.headers)},
    )
    spec |= {"name": name, "tenant": call.of.key}
    specs.join(spec)
    made = await endpoints.add(
        call.connection, call.of.key, name, uid, orjson.dumps(spec), orjson.dumps(given.metadata)
    )
    if made is None:
        raise _taken(uid)
    await endpoints.sign(call.connection, made.id, finding.sealed(call, made.id, given.secret or new_secret()))
    values = {HEADER + name: value for name, value in given.headers.items()} | specs.hidden(given.url)
    await endpoints.seal(
        call.connection, made.id, [(key, finding.sealed(call, made.id, text, key)) for key, text in values.items()]
    )
    await endpoints.changed(call.connection, made.id)
    return Answer(201, specs.shown_as(made, given.url), made.name)


async def _changed(
    call: Call, found: Made, uid: str | None, spec: dict[str, Any], metadata: Mapping[str, str], *, url: str | None
) -> Answer:
    finding.expect_own(found)
    before = specs.spec_of(found)
    if specs.is_polled(before) is not specs.is_polled(spec):
        raise conflict("An endpoint stays sent to, or polled; make another one.", "kind_stays")
    await _expect_free(call, uid, found.id)
    if spec["events"] != before["events"]:
        await finding.check_types(call, spec["events"])
    _check_kind(call, spec, url)
    finding.check_shape(call, spec, spec["headers"], before)
    if url is not None:
        spec["url"] = specs.place_of(url)
        kept = [HEADER + name for name in spec["headers"]]
        hidden = [(key, finding.sealed(call, found.id, text, key)) for key, text in specs.hidden(url).items()]
        await endpoints.seal(call.connection, found.id, hidden, kept)
    specs.join(spec)
    changed = await endpoints.change(call.connection, found.id, uid, orjson.dumps(spec), orjson.dumps(metadata))
    if changed is None:
        raise not_found("endpoint")
    await endpoints.changed(call.connection, found.id)
    return Answer(200, shown(call, changed), changed.name)


async def _enable(call: Call, given: EndpointUpdate | EndpointPatch) -> None:
    """`disabled: false` ends a disable as well, before `lock`: that takes the lock of the log, which comes first."""
    if given.disabled is False and "disabled" in given.model_fields_set:
        found = await endpoints.find(call.connection, call.of.key, call.path["endpoint_id"])
        if found is not None and found.source == "api" and found.disabled_at is not None:
            await endpoints.enable(call.connection, found.id, call.caller.name)


async def _expect_free(call: Call, uid: str | None, id_: int | None) -> None:
    """Raise Problem 409 where another of the application has this uid, or is called so."""
    if uid is not None:
        there = await endpoints.find(call.connection, call.of.key, uid)
        if there is not None and there.id != id_:
            raise _taken(uid)


def _expect_may_shape(call: Call, given: EndpointUpdate | EndpointPatch) -> None:
    """Raise Problem 403 where a portal says what requests look like, which is its operator's."""
    if call.caller.role == "portal" and given.model_fields_set & {"format", "signature", "webhookd"}:
        raise Problem(403, "forbidden", "format, signature and webhookd are not a portal's to choose.")


def _uid_of_path(call: Call, uid: str | None) -> str:
    named = call.path["endpoint_id"]
    if uid not in (None, named):
        raise conflict(f"The path says {named} and the body another uid; leave out one of them.")
    if named.startswith("ep_") or not re.fullmatch(r"[a-zA-Z0-9\-_.]{1,255}", named):
        raise not_found("endpoint")
    return named


def _taken(uid: str | None) -> Problem:
    return conflict(f"The uid {uid} is another endpoint's of this application; choose another.")


def _check_kind(call: Call, spec: Mapping[str, Any], url: str | None) -> None:
    """Raise Invalid where the endpoint is sent to and cannot be, or is polled and says how it is sent to."""
    if not specs.is_polled(spec):
        return None if url is None else _check_url(call, url)
    said = {
        "url": url,
        **{name: spec.get(name) for name in ("rate_limit", "timeout", "retry", "max_in_flight", "disable_after")},
    }
    wrong = [to_camel(name) for name, value in said.items() if value]
    if wrong:
        raise Invalid([Wrong(("body", name), "means nothing for an endpoint that is polled") for name in wrong])
    return None


def _check_url(call: Call, url: str) -> None:
    egress = call.around.egress
    if egress is None:
        mistake = "cannot be reached: all requests go through a proxy, and [api] through_proxy does not allow it here"
    else:
        mistake = url_mistake(url, egress.allow_http) or ""
    if mistake:
        raise Invalid([Wrong(("body", "url"), mistake)])


def _check_retry(call: Call, given: EndpointUpdate | EndpointPatch) -> None:
    longest, after = call.around.give_up_most, given.retry.give_up_after if given.retry is not None else None
    if after is not None and after > longest:
        what = f"may be {longest:,.0f} at most, a day less than events are kept"
        raise Invalid([Wrong(("body", "retry", "giveUpAfter"), what)])


def shown(call: Call, found: Made) -> EndpointOut:
    """As its tenant sees it, with its whole URL where this daemon can open that."""
    url = specs.spec_of(found)["url"]
    if found.url_key is not None and found.url_sealed is not None:
        with suppress(Problem):  # a daemon without the key shows what everybody may see
            url = finding.opened(call, found, Sealed(found.url_key, found.url_sealed), URL)
    return specs.shown_as(found, url)
