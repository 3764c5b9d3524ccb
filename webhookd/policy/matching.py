"""Which endpoints an event reaches: event types, tenants and metadata filters.

An event reaches only the endpoints of exactly its tenant, and those whose tenant is "*".
`order.created` matches exactly, `order.*` one or more further segments, `*` every type but the daemon's own
`webhookd.*`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Protocol

from webhookd.metadata import parsed
from webhookd.model import Condition, Endpoint, Event
from webhookd.policy.payload_filter import MOST_BYTES, UNSEEN, mistake

ANY_TENANT = "*"
OWN_TYPES = "webhookd."
WHY_NOT = ("tenant", "type", "filter", "itself", "inactive", "payload")  # in the order in which they are looked at
NO_PAYLOAD = "payload: it is not known here, so that it may pass the filter or not"
CACHED_BYTES = (
    8 * 1024 * 1024
)  # event types come from applications, so neither their number nor size has a bound of its own
CACHED_NAME = 256  # characters of a tenant and a type together; a longer one is looked up each time


class Subscriber(Protocol):
    """What matching looks at of an endpoint."""

    @property
    def tenant(self) -> str: ...
    @property
    def events(self) -> tuple[str, ...]: ...
    @property
    def filter(self) -> Mapping[str, tuple[str, ...]]: ...
    @property
    def data_filter(self) -> tuple[Condition, ...]: ...
    @property
    def active(self) -> bool: ...
    @property
    def label(self) -> str: ...


def matches_type(pattern: str, type_: str) -> bool:
    """True when an endpoint that subscribes to `pattern` wants events of `type_`."""
    if pattern == "*":
        return not type_.startswith(OWN_TYPES)
    if pattern.endswith(".*"):
        return type_.startswith(pattern[:-1]) and len(type_) > len(pattern) - 1
    return pattern == type_


def passes_filter(endpoint: Subscriber, metadata: bytes | None) -> bool:
    """True when every key of the endpoint's filter has one of its values in the event's metadata.

    Strings are compared as they are; numbers, booleans and null by their JSON text; of a list it is enough that one of
    its items has such a value. Metadata that is no object passes no filter.
    """
    if not endpoint.filter:
        return True
    labels = parsed(metadata)
    return labels is not None and _failing_key(endpoint, _Texts(labels)) is None


def why_not(endpoint: Subscriber, event: Event) -> str | None:
    """What keeps the event from the endpoint, as `kind: reason` with a kind of WHY_NOT, or None when it is owed it.

    Of an endpoint that has a filter for payloads it is NO_PAYLOAD where the event has none with it.
    """
    if endpoint.tenant not in (event.tenant, ANY_TENANT):
        return f"tenant: it gets those of {json.dumps(endpoint.tenant)}, the event is of {json.dumps(event.tenant)}"
    if not any(matches_type(pattern, event.type) for pattern in endpoint.events):
        own = f", which leaves out our own {OWN_TYPES}*" if event.type.startswith(OWN_TYPES) else ""
        return f"type: it subscribes to {_any_of(endpoint.events)}{own}"
    if not passes_filter(endpoint, event.metadata):
        return f"filter: {_filter_mistake(endpoint, event.metadata)}"
    if is_about(endpoint, event):
        return "itself: what we say about an endpoint never goes to that endpoint"
    if not endpoint.active:
        return "inactive: it is switched off with active = false"
    if not endpoint.data_filter:
        return None
    if event.payload is None and event.size <= MOST_BYTES:
        return NO_PAYLOAD
    why = UNSEEN if event.payload is None else mistake(endpoint.data_filter, event.payload)
    return None if why is None else f"payload: {why}"


def is_about(endpoint: Subscriber, event: Event) -> bool:
    """True for an event of our own about this very endpoint, which could not get it, or would without end."""
    if not event.type.startswith(OWN_TYPES):
        return False
    labels = parsed(event.metadata)
    return labels is not None and labels.get("endpoint") == endpoint.label


def _filter_mistake(endpoint: Subscriber, metadata: bytes | None) -> str:
    if metadata is None:
        return f"the event has no metadata, and {_any_of(endpoint.filter)} is asked for"
    labels = parsed(metadata)
    if labels is None:
        return "the metadata of the event is no JSON object"
    key = _failing_key(endpoint, _Texts(labels)) or ""
    found = f"is {json.dumps(labels[key])}" if key in labels else "is missing from the metadata"
    return f"{json.dumps(key)} {found}, it wants {_any_of(endpoint.filter[key])}"


class _Texts(dict[str, Set[str]]):
    """What a filter compares its values with, by label; made when it is first asked for, as few are."""

    def __init__(self, labels: Mapping[str, object]) -> None:
        super().__init__()
        self._labels = labels

    def __missing__(self, key: str) -> Set[str]:
        texts: Set[str] = frozenset()
        if key in self._labels:
            value = self._labels[key]
            texts = {_text(value), *map(_text, value)} if isinstance(value, list) else {_text(value)}
        self[key] = texts
        return texts


def _failing_key(endpoint: Subscriber, labels: _Texts) -> str | None:
    """The first key of the filter that the labels do not satisfy."""
    for key, values in endpoint.filter.items():
        if labels[key].isdisjoint(values):
            return key
    return None


def _any_of(values: Iterable[str]) -> str:
    return " or ".join(map(json.dumps, values))  # escaped, as an event's type may hold anything


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class _Index:
    """Endpoints by what they subscribe to, so that a type costs as much as it has subscribers."""

    def __init__(self) -> None:
        self._endpoints: dict[int, Endpoint] = {}  # by their place in the order
        self._exactly: dict[str, list[int]] = {}
        self._below: dict[str, list[int]] = {}
        self._lengths: set[int] = set()  # of the keys of `_below`, or of some that are gone
        self._all: list[int] = []
        self._last = -1

    def add(self, endpoint: Endpoint, place: int | None = None) -> int:
        """Have it at this place, which is free, or behind all others; where it is then."""
        if place is None:
            place = self._last = self._last + 1
        self._endpoints[place] = endpoint
        for pattern in set(endpoint.events):
            if pattern == "*":
                self._all.append(place)
            elif pattern.endswith(".*"):
                self._below.setdefault(pattern[:-1], []).append(place)
                self._lengths.add(len(pattern) - 1)
            else:
                self._exactly.setdefault(pattern, []).append(place)
        return place

    def remove(self, place: int) -> None:
        """Forget the one at this place."""
        for pattern in set(self._endpoints.pop(place).events):
            if pattern == "*":
                self._all.remove(place)
                continue
            key, among = (pattern[:-1], self._below) if pattern.endswith(".*") else (pattern, self._exactly)
            among[key].remove(place)
            if not among[key]:
                del among[key]

    def subscribers(self, type_: str) -> list[Endpoint]:
        """As `matches_type` says, in order."""
        found = set(self._exactly.get(type_, ()))
        for length in self._lengths:
            if len(type_) > length:
                found.update(self._below.get(type_[:length], ()))
        if not type_.startswith(OWN_TYPES):
            found.update(self._all)
        return [self._endpoints[place] for place in sorted(found)]


class _Subscribers:
    """Who subscribes to a type of a tenant, in order, and which of them want what metadata."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.everybody = tuple(endpoints)
        self._free = [at for at, endpoint in enumerate(endpoints) if not endpoint.filter]
        self.unfiltered = self.everybody
        # By the first key of the filter, and its values: filters, each once, and who has it.
        self._by_label: dict[str, dict[str, list[list[int]]]] = {}
        if len(self._free) < len(endpoints):
            self.unfiltered = tuple(endpoints[at] for at in self._free)
        alike: dict[tuple[tuple[str, tuple[str, ...]], ...], list[int]] = {}
        for at, endpoint in enumerate(endpoints):
            if endpoint.filter:
                alike.setdefault(tuple(endpoint.filter.items()), []).append(at)
        for ((key, values), *_), group in alike.items():
            for value in values:
                self._by_label.setdefault(key, {}).setdefault(value, []).append(group)

    @property
    def size(self) -> int:
        """Bytes, about."""
        return 32 * len(self.everybody) + 500

    def wanting(self, metadata: bytes | None) -> tuple[Endpoint, ...]:
        """Those whose filter lets it pass."""
        found_labels = parsed(metadata) if self._by_label else None
        if found_labels is None:
            return self.unfiltered
        labels = _Texts(found_labels)
        found = {
            at
            for key, by_value in self._by_label.items()
            for text in labels[key]
            for group in by_value.get(text, ())
            if _failing_key(self.everybody[group[0]], labels) is None
            for at in group
        }
        return tuple(self.everybody[at] for at in sorted(found.union(self._free))) if found else self.unfiltered


class Matcher:
    """Answers `endpoints_for(event)` for one set of endpoints; inactive ones are never owed anything.

    With `require_tenant` an event without a tenant reaches nobody; `refused` counts those. Endpoints are told apart by
    their numbers when one is put in the place of another, or dropped.
    """

    def __init__(self, endpoints: Iterable[Endpoint], *, require_tenant: bool = False) -> None:
        self._require_tenant = require_tenant
        self.refused = 0
        self._by_tenant: dict[str, _Index] = {}
        self._places: dict[int, tuple[str, int]] = {}  # by number: whose index it is in, and where
        self._cached: dict[str, dict[str, _Subscribers]] = {}  # by tenant and type
        self._cached_bytes = 0
        for endpoint in endpoints:
            self._add(endpoint)

    def endpoints_for(self, event: Event) -> tuple[Endpoint, ...]:
        """The endpoints that are owed this event, in the order of the configuration."""
        if self._require_tenant and not event.tenant:
            self.refused += 1
            return ()
        cached = self._cached.get(event.tenant)
        subscribers = (cached and cached.get(event.type)) or self._subscribers(event.tenant, event.type)
        found = subscribers.wanting(event.metadata)
        if event.type.startswith(OWN_TYPES):
            about = (parsed(event.metadata) or {}).get("endpoint")
            found = tuple(endpoint for endpoint in found if endpoint.label != about)
        return found

    def put(self, endpoint: Endpoint) -> None:
        """Have this one in the place of the one with its number, or behind all others of its tenant."""
        place = self._remove(endpoint.id, endpoint.tenant)
        self._add(endpoint, place)
        self._forget(endpoint.tenant)

    def drop(self, id_: int) -> None:
        """Owe the one with this number nothing."""
        self._remove(id_, "")

    def _add(self, endpoint: Endpoint, place: int | None = None) -> None:
        if endpoint.active:
            place = self._by_tenant.setdefault(endpoint.tenant, _Index()).add(endpoint, place)
            self._places[endpoint.id] = endpoint.tenant, place

    def _remove(self, id_: int, tenant: str) -> int | None:
        """The place that it had, if that was among those of this tenant."""
        if (at := self._places.pop(id_, None)) is None:
            return None
        self._by_tenant[at[0]].remove(at[1])
        self._forget(at[0])
        return at[1] if at[0] == tenant else None

    def _forget(self, tenant: str) -> None:
        """Look anew who subscribes to what of this tenant."""
        if tenant == ANY_TENANT:
            self._cached, self._cached_bytes = {}, 0
        else:
            self._cached_bytes -= sum(found.size for found in self._cached.pop(tenant, {}).values())

    def _subscribers(self, tenant: str, type_: str) -> _Subscribers:
        indexes = [self._by_tenant[name] for name in dict.fromkeys((tenant, ANY_TENANT)) if name in self._by_tenant]
        found = _Subscribers([endpoint for index in indexes for endpoint in index.subscribers(type_)])
        if len(tenant) + len(type_) <= CACHED_NAME:
            if self._cached_bytes + found.size > CACHED_BYTES:
                self._cached, self._cached_bytes = {}, 0
            self._cached.setdefault(tenant, {})[type_] = found
            self._cached_bytes += found.size
        return found
