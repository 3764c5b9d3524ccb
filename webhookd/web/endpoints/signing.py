"""What an endpoint's requests prove themselves with: its secrets, and its headers."""

import re
from typing import Final

import orjson

from webhookd.message.kept import HEADER, URL
from webhookd.message.signing import new_secret
from webhookd.policy.access import Right
from webhookd.store import endpoints
from webhookd.store.endpoints import Made
from webhookd.web.endpoints import finding, specs
from webhookd.web.endpoints.shapes import HeadersOut, RotationIn, SecretOut
from webhookd.web.operation import Answer, Call
from webhookd.web.problem import Problem

# Names of headers whose values are not shown.
_TELLING: Final = re.compile(r"auth|token|key|secret|password|signature", re.IGNORECASE)


async def secret(call: Call) -> Answer:
    """What its requests are signed with."""
    found = await finding.found(call)
    if found.source != "api":
        raise Problem(403, "forbidden", "The secrets of files are never shown.")
    return Answer(200, await _shown(call, found))


async def rotate(call: Call) -> Answer:
    """Sign with another secret, and for a while with the one before. Who may see secrets is told it."""
    given: RotationIn = call.body
    await finding.lock(call)
    found = await finding.own(call)
    new = finding.sealed(call, found.id, given.key or new_secret())
    await endpoints.rotate(call.connection, found.id, new, given.grace_period_seconds or 0)
    await endpoints.changed(call.connection, found.id)
    return Answer(200, await _shown(call, found), found.name)


async def rotated(call: Call, made: str | None, status: int) -> Answer:
    """What it signs with now."""
    return Answer(status, await _shown(call, await finding.found(call)), made)


async def _shown(call: Call, found: Made) -> SecretOut:
    kept = await endpoints.secrets(call.connection, found.id)
    if not kept or Right.SEE_SECRETS not in call.caller.rights:
        return SecretOut(key="")
    return SecretOut(key=finding.opened(call, found, kept[0][0], "secret"))


async def headers(call: Call) -> Answer:
    """Its headers, but for values that tell a secret."""
    found = await finding.found(call)
    values = (await endpoints.sealed(call.connection, [found.id])).get(found.id, {})
    names: list[str] = specs.spec_of(found)["headers"] if found.source == "api" else []
    shown = {
        name: finding.opened(call, found, values[HEADER + name], HEADER + name)
        for name in names
        if HEADER + name in values and not _TELLING.search(name)
    }
    return Answer(200, HeadersOut(headers=shown, sensitive=[name for name in names if _TELLING.search(name)]))


async def set_headers(call: Call) -> Answer:
    """Have these be all of its headers."""
    return await _headed(call, dict(call.body.headers), replace=True)


async def patch_headers(call: Call) -> Answer:
    """Change some of its headers."""
    return await _headed(call, dict(call.body.headers), replace=False)


async def _headed(call: Call, given: dict[str, str | None], *, replace: bool) -> Answer:
    await finding.lock(call)
    found = await finding.own(call)
    finding.check_headers(given)
    spec = specs.spec_of(found)
    lower = {name.lower() for name in given}
    stay = [] if replace else [name for name in spec["headers"] if name.lower() not in lower]
    new = {name: value for name, value in given.items() if value is not None}
    finding.check_headers([*stay, *new])
    sealed = [(HEADER + name, finding.sealed(call, found.id, value, HEADER + name)) for name, value in new.items()]
    await endpoints.seal(call.connection, found.id, sealed, [URL, *(HEADER + name for name in stay)])
    spec["headers"] = sorted([*stay, *new])
    finding.check_shape(call, spec, spec["headers"], spec)
    await endpoints.change(call.connection, found.id, found.uid, orjson.dumps(spec), found.metadata)
    await endpoints.changed(call.connection, found.id)
    return Answer(204, None, found.name)
