"""Which endpoint is meant, whether it may be changed here, and what is sealed of it."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import orjson
from pydantic.alias_generators import to_camel

from webhookd.message.own_signature import conflicts
from webhookd.message.sealing import Sealed, Unreadable
from webhookd.policy.matching import ANY_TENANT
from webhookd.store import endpoints, event_types, tenants
from webhookd.store.endpoints import Made
from webhookd.web.operation import Call
from webhookd.web.problem import Invalid, Problem, Wrong, conflict, not_found

HEADERS_MOST: Final = 50  # of one endpoint


async def lock(call: Call) -> None:
    """Be the only one who changes endpoints. Problem 404 where the application has gone since it was looked for."""
    await endpoints.lock(call.connection)
    if await tenants.lock(call.connection, call.of.id) is None:
        raise not_found("application")


async def found(call: Call) -> Made:
    """The one of the path. Problem 404 where there is none."""
    made = await endpoints.find(call.connection, call.of.key, call.path["endpoint_id"])
    if made is None:
        raise not_found("endpoint")
    return made


async def seen(call: Call, name: str | None = None) -> Made:
    """The same, or one that the operator has for all tenants, whom only he sees."""
    name = call.path["endpoint_id"] if name is None else name
    made = await endpoints.find(call.connection, call.of.key, name)
    if made is None and call.caller.tenant is None:
        made = await endpoints.find(call.connection, ANY_TENANT, name)
    if made is None:
        raise not_found("endpoint")
    return made


async def own(call: Call) -> Made:
    """The same, if it is to be changed here. Problem 409 where a file has it."""
    made = await found(call)
    expect_own(made)
    return made


def expect_own(made: Made) -> None:
    """Raise Problem 409 for one of a file."""
    if made.source != "api":
        raise conflict("This endpoint is defined in a file of the operator's, and is changed there.", "read_only")


def expect_polled(made: Made) -> None:
    """Raise Problem 409 for one that is sent to."""
    if not orjson.loads(made.spec).get("kind") == "poll":
        raise conflict("The endpoint is sent to; one that is polled has kind poll.", "not_polled")


def expect_sent_to(made: Made) -> None:
    """Raise Problem 409 for one that is polled."""
    if orjson.loads(made.spec).get("kind") == "poll":
        raise conflict("The endpoint is polled, and nothing is sent to it: its consumers seek instead.", "polled")


def expect_key(call: Call) -> None:
    """Raise Problem 409 where nothing can be sealed."""
    if not call.around.keyring.first:
        raise conflict(
            "What is secret of endpoints is sealed, and there is no key for that: make one with `webhookd secret key`, "
            "and name its file under [encryption] keys.",
            "no_sealing_key",
        )


async def check_types(call: Call, patterns: Iterable[str]) -> None:
    """Raise Invalid where types have to be registered, and one is not."""
    if not call.around.settings.strict_event_types:
        return
    files = call.around.event_types
    ranked = sorted(files)
    strange = [each for each in set(patterns) if each != "*" and each not in files and not _is_above(each, ranked)]
    if strange and (unknown := await event_types.unknown(call.connection, strange)):
        raise Invalid([Wrong(("body", "eventTypes"), f"{each} is registered nowhere") for each in unknown])


def _is_above(pattern: str, ranked: Sequence[str]) -> bool:
    """True when one of these names, in their order, is below a pattern such as order.*"""
    below = pattern[:-1]
    at = bisect_right(ranked, below)
    return pattern.endswith(".*") and at < len(ranked) and ranked[at].startswith(below)


def check_headers(given: Iterable[str]) -> None:
    """Raise Invalid where a header is there in two ways of writing, or there are too many."""
    names = list(given)
    if len({name.lower() for name in names}) < len(names):
        raise Invalid([Wrong(("body", "headers"), "has a header twice")])
    if len(names) > HEADERS_MOST:
        raise Invalid([Wrong(("body", "headers"), f"may have {HEADERS_MOST} at most")])


def check_shape(
    call: Call, spec: Mapping[str, Any], headers: Iterable[str], before: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Raise Invalid for a format that nobody has, and for a signature that does not go with the headers.

    What it was `before` is looked at no more: a file may have lost a format since.
    """
    wrong = []
    if spec["format"] != before.get("format") and spec["format"] not in call.around.formats:
        wrong.append(Wrong(("body", "format"), "is no format that there is; docs/api.md says which there are"))
    if hmac := spec.get("hmac"):
        said = {key: hmac[key] for key in ("header", "timestamp_header", "timestamp", "signed")}
        for key, sentence in conflicts(**said, own={name.lower() for name in headers}):
            wrong.append(Wrong(("body", "webhookd", "hmac", to_camel(key)), f"{key} of hmac {sentence}"))
    if wrong:
        raise Invalid(wrong)


def sealed(call: Call, id_: int, text: str, name: str = "secret") -> Sealed:
    """What is kept of a text by this name."""
    expect_key(call)
    return call.around.keyring.seal(id_, text, name)


def opened(call: Call, made: Made, sealed: Sealed, name: str) -> str:
    """The text again. Problem 503 where this daemon has not the key."""
    try:
        return call.around.keyring.open(made.id, sealed, name)
    except Unreadable as why:
        raise Problem(503, "sealed", f"This daemon cannot open what is sealed of it: {why}.") from None
