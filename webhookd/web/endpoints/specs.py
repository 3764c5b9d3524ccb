"""What is kept of an endpoint in its spec, made of what was said, and shown as what was made of it."""

from collections.abc import Mapping
from typing import Any, Final

import orjson
from pydantic.alias_generators import to_camel

from webhookd.message.kept import URL
from webhookd.policy.payload_filter import compiled, spelled
from webhookd.store.endpoints import Made
from webhookd.web.endpoints.shapes import EndpointIn, EndpointOut, EndpointPatch, EndpointUpdate, OperatorsIn

NEW: Final[Mapping[str, Any]] = {  # what a daemon and the commands look for in the spec of an endpoint
    "description": "", "active": True, "signature": "standard", "format": "raw", "events": ["*"], "headers": [],
    "tls": [], "auth": None, "timeout": None, "max_in_flight": None, "rate_limit": 0.0, "retry": None, "filter": {},
    "disable_after": None, "disable_on_request": False, "ordered": False, "on_exhausted": "skip",
}  # fmt: skip


def said(given: EndpointUpdate | EndpointPatch) -> dict[str, Any]:
    """What of the spec the request says."""
    named, whole = given.model_fields_set, isinstance(given, EndpointUpdate)
    found: dict[str, Any] = {}
    for name in ("description", "signature", "format"):
        if (whole or name in named) and getattr(given, name, None) is not None:
            found[name] = getattr(given, name)
    if whole or "disabled" in named:
        found["active"] = not given.disabled
    if whole or named & {"event_types", "filter_types"}:
        found["events"] = _newer(given, "event_types", "filter_types") or ["*"]
    if whole or named & {"throttle_rate", "rate_limit"}:
        found["rate_limit"] = float(_newer(given, "throttle_rate", "rate_limit") or 0)
    if whole or "timeout" in named:
        found["timeout"] = given.timeout
    if whole or "retry" in named:
        found["retry"] = given.retry.model_dump(exclude_none=True) if given.retry is not None else None
    # Of a portal nothing is expected to be said here, so its PUT keeps what the operator has said.
    if "webhookd" in named:
        found |= _operators(given.webhookd or OperatorsIn())
    return found | _filtered(given, whole=whole)


def _operators(said: OperatorsIn) -> dict[str, Any]:
    """What is an operator's, all of it; but it stays polled, or sent to, where that is not said."""
    return {
        "max_in_flight": said.max_in_flight,
        "disable_after": None if said.disable_after is None else said.disable_after.model_dump(),
        "hmac": None if said.hmac is None else said.hmac.model_dump(),
        **({} if said.kind is None else {"kind": said.kind}),
    }


def _newer(given: EndpointUpdate | EndpointPatch, newer: str, older: str) -> Any:
    """What is said under either name; under both, the newer one counts."""
    return getattr(given, newer if newer in given.model_fields_set else older)


def _filtered(given: EndpointUpdate | EndpointPatch, *, whole: bool) -> dict[str, Any]:
    """Channels are a filter on the metadata of that name, kept apart so that either can be changed alone."""
    said, found = given.model_fields_set, dict[str, Any]()
    if whole or "channels" in said:
        found["channels"] = given.channels or None
    if "filter" in said or isinstance(given, EndpointIn):
        own = dict(getattr(given, "filter", None) or {})
        data = own.pop("data", None)
        found |= {"own_filter": own, "data_filter": spelled(compiled(data)) if data else None}
    return found


def join(spec: dict[str, Any]) -> None:
    """What is matched by: its own filter, and its channels as one more."""
    for name in ("data_filter", "hmac"):
        if spec.get(name) is None:
            spec.pop(name, None)
    channels = {"channels": spec["channels"]} if spec.get("channels") else {}
    spec["filter"] = {**spec.get("own_filter", {}), **channels}


def spec_of(found: Made) -> dict[str, Any]:
    """As it is kept."""
    spec: dict[str, Any] = orjson.loads(found.spec)
    return spec


def is_polled(spec: Mapping[str, Any]) -> bool:
    """True for one whose events are fetched."""
    return spec.get("kind") == "poll"


def place_of(url: str) -> str:
    """What of a URL everybody may see: no query."""
    return url.partition("?")[0]


def hidden(url: str) -> dict[str, str]:
    """What of it is sealed, by its name."""
    return {URL: url} if "?" in url else {}


def shown_as(found: Made, url: str) -> EndpointOut:
    """As its tenant sees it."""
    spec = spec_of(found)
    types = None if spec["events"] == ["*"] else spec["events"]
    rate = int(spec["rate_limit"] or 0) or None
    return EndpointOut(
        id=found.name, uid=found.uid, url=url, description=spec["description"], event_types=types, filter_types=types,
        channels=spec.get("channels"), disabled=not spec["active"] or found.disabled_at is not None,
        metadata=orjson.loads(found.metadata), rate_limit=rate, throttle_rate=rate, version=1,
        created_at=found.created_at, updated_at=found.updated_at, signature=spec["signature"], format=spec["format"],
        filter=_own_filter(spec), read_only=found.source != "api", **_told(found, spec),
    )  # fmt: skip


def _own_filter(spec: Mapping[str, Any]) -> dict[str, Any]:
    """As it was said: without the channels, with what is of payloads under `data`."""
    own = dict(spec.get("own_filter", spec["filter"]))
    return own | {"data": spec["data_filter"]} if "data_filter" in spec else own


def _told(found: Made, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What it says of waiting and of limits; of files that is the operator's, in words of its own."""
    if found.source != "api":
        return {"timeout": None, "retry": None, "webhookd": None}
    own = {"maxInFlight": spec["max_in_flight"], "disableAfter": spec["disable_after"]}
    own["kind"] = "poll" if is_polled(spec) else None
    own["hmac"] = spec.get("hmac") and {to_camel(key): value for key, value in spec["hmac"].items()}
    retry = spec["retry"] and {to_camel(key): value for key, value in spec["retry"].items()}
    own = {key: value for key, value in own.items() if value is not None}
    return {"timeout": spec["timeout"], "retry": retry, "webhookd": own or None}
