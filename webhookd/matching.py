"""Which endpoints an event reaches: event types, tenants and metadata filters.

An event reaches only the endpoints of exactly its tenant, and those whose tenant is "*".
`order.created` matches exactly, `order.*` one or more further segments, `*` every type but the daemon's own
`webhookd.*`.
"""

import json
from collections.abc import Iterable

from webhookd.model import Endpoint, Event

ANY_TENANT = "*"
OWN_TYPES = "webhookd."
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
    if metadata is None:
        return False
    try:
        labels = json.loads(metadata)
    except (ValueError, RecursionError):
        return False
    if not isinstance(labels, dict):
        return False
    return all(key in labels and _text(labels[key]) in values for key, values in endpoint.filter.items())


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class Matcher:
    """Answers `endpoints_for(event)` for one set of endpoints; inactive ones are never owed anything."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._by_tenant: dict[str, list[Endpoint]] = {}
        for endpoint in endpoints:
            if endpoint.active:
                self._by_tenant.setdefault(endpoint.tenant, []).append(endpoint)
        self._subscribed: dict[tuple[str, str], tuple[tuple[Endpoint, ...], bool]] = {}

    def endpoints_for(self, event: Event) -> tuple[Endpoint, ...]:
        """The endpoints that are owed this event, in the order of the configuration."""
        found = self._subscribed.get((event.tenant, event.type))
        if found is None:
            found = self._subscribers(event.tenant, event.type)
        subscribers, filtered = found
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
