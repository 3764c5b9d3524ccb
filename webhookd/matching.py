"""Which endpoints an event reaches: event types, tenants and metadata filters.

An event reaches only the endpoints of exactly its tenant, and those whose tenant is "*".
`order.created` matches exactly, `order.*` one or more further segments, `*` every type but the daemon's own
`webhookd.*`.
"""

import json
from collections.abc import Iterable, Mapping

from webhookd.model import Endpoint, Event

ANY_TENANT = "*"
OWN_TYPES = "webhookd."
WHY_NOT = ("tenant", "type", "filter", "itself", "inactive")  # in the order in which they are looked at
CACHED_TYPES = 10_000  # event types come from applications, so their number has no bound of its own


def matches_type(pattern: str, type_: str) -> bool:
    """True when an endpoint that subscribes to `pattern` wants events of `type_`."""
    if pattern == "*":
        return not type_.startswith(OWN_TYPES)
    if pattern.endswith(".*"):
        return type_.startswith(pattern[:-1]) and len(type_) > len(pattern) - 1
    return pattern == type_


def passes_filter(endpoint: Endpoint, metadata: bytes | None) -> bool:
    """True when every key of the endpoint's filter has one of its values in the event's metadata.

    Strings are compared as they are; numbers, booleans and null by their JSON text. Metadata that is no object passes
    no filter.
    """
    if not endpoint.filter:
        return True
    labels = _labels(metadata)
    return labels is not None and _failing_key(endpoint, labels) is None


def why_not(endpoint: Endpoint, event: Event) -> str | None:
    """What keeps the event from the endpoint, as `kind: reason` with a kind of WHY_NOT, or None when it is owed it."""
    if endpoint.tenant not in (event.tenant, ANY_TENANT):
        return f"tenant: it gets those of {json.dumps(endpoint.tenant)}, the event is of {json.dumps(event.tenant)}"
    if not any(matches_type(pattern, event.type) for pattern in endpoint.events):
        own = f", which leaves out our own {OWN_TYPES}*" if event.type.startswith(OWN_TYPES) else ""
        return f"type: it subscribes to {_any_of(endpoint.events)}{own}"
    if not passes_filter(endpoint, event.metadata):
        return f"filter: {_filter_mistake(endpoint, event.metadata)}"
    if is_about(endpoint, event):
        return "itself: what we say about an endpoint never goes to that endpoint"
    return None if endpoint.active else "inactive: it is switched off with active = false"


def is_about(endpoint: Endpoint, event: Event) -> bool:
    """True for an event of our own about this very endpoint, which could not get it, or would without end."""
    if not event.type.startswith(OWN_TYPES):
        return False
    labels = _labels(event.metadata)
    return labels is not None and labels.get("endpoint") == endpoint.label


def _filter_mistake(endpoint: Endpoint, metadata: bytes | None) -> str:
    if metadata is None:
        return f"the event has no metadata, and {_any_of(endpoint.filter)} is asked for"
    labels = _labels(metadata)
    if labels is None:
        return "the metadata of the event is no JSON object"
    key = _failing_key(endpoint, labels) or ""
    found = f"is {json.dumps(labels[key])}" if key in labels else "is missing from the metadata"
    return f"{json.dumps(key)} {found}, it wants {_any_of(endpoint.filter[key])}"


def _labels(metadata: bytes | None) -> dict[str, object] | None:
    """The metadata as an object, or None if it is none."""
    if metadata is None:
        return None
    try:
        labels = json.loads(metadata)
    except (ValueError, RecursionError):
        return None
    return labels if isinstance(labels, dict) else None


def _failing_key(endpoint: Endpoint, labels: Mapping[str, object]) -> str | None:
    """The first key of the filter that the labels do not satisfy."""
    for key, values in endpoint.filter.items():
        if key not in labels or _text(labels[key]) not in values:
            return key
    return None


def _any_of(values: Iterable[str]) -> str:
    return " or ".join(map(json.dumps, values))  # escaped, as an event's type may hold anything


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class Matcher:
    """Answers `endpoints_for(event)` for one set of endpoints; inactive ones are never owed anything.

    With `require_tenant` an event without a tenant reaches nobody; `refused` counts those.
    """

    def __init__(self, endpoints: Iterable[Endpoint], *, require_tenant: bool = False) -> None:
        self._require_tenant = require_tenant
        self.refused = 0
        self._by_tenant: dict[str, list[Endpoint]] = {}
        for endpoint in endpoints:
            if endpoint.active:
                self._by_tenant.setdefault(endpoint.tenant, []).append(endpoint)
        self._subscribed: dict[tuple[str, str], tuple[tuple[Endpoint, ...], bool]] = {}

    def endpoints_for(self, event: Event) -> tuple[Endpoint, ...]:
        """The endpoints that are owed this event, in the order of the configuration."""
        if self._require_tenant and not event.tenant:
            self.refused += 1
            return ()
        found = self._subscribed.get((event.tenant, event.type))
        if found is None:
            found = self._subscribers(event.tenant, event.type)
        subscribers, filtered = found
        if event.type.startswith(OWN_TYPES):
            subscribers = tuple(endpoint for endpoint in subscribers if not is_about(endpoint, event))
        if not filtered:
            return subscribers
        return tuple(endpoint for endpoint in subscribers if passes_filter(endpoint, event.metadata))

    def _subscribers(self, tenant: str, type_: str) -> tuple[tuple[Endpoint, ...], bool]:
        candidates = [e for name in dict.fromkeys((tenant, ANY_TENANT)) for e in self._by_tenant.get(name, ())]
        subscribers = tuple(e for e in candidates if any(matches_type(pattern, type_) for pattern in e.events))
        found = (subscribers, any(e.filter for e in subscribers))
        if len(self._subscribed) >= CACHED_TYPES:
            self._subscribed.clear()
        self._subscribed[tenant, type_] = found
        return found
