"""Endpoints as the database has them: what a daemon sends to, of those that the API has made."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from webhookd.message.formats import FORMATS
from webhookd.message.own_signature import own_hmac
from webhookd.message.sealing import Keyring, Sealed, Unreadable
from webhookd.message.signing import SCHEMES, parse_secret
from webhookd.model import DisableAfter, Endpoint, Format, Key, RetryPolicy

TIMEOUT_MOST = 30.0  # seconds that the API lets an endpoint have
URL, HEADER = "url", "header "  # names of what is sealed; a header's follows


class Kept(NamedTuple):
    """An endpoint as it is in the database: its spec, and what is sealed of it. `is_gone`: it counts as removed."""

    id: int
    tenant: str
    name: str
    source: str  # file | api
    is_gone: bool
    spec: Mapping[str, Any]
    secrets: Sequence[tuple[Sealed, float | None]]  # with the moment from which each signs nothing
    values: Mapping[str, Sealed]


class Defaults(NamedTuple):
    """What it does not say itself."""

    timeout: float
    max_in_flight: int
    retry: RetryPolicy
    disable_after: DisableAfter | None = None
    give_up_most: float = float("inf")  # whatever it says
    formats: Mapping[str, Format] = FORMATS


def own_formats(formats: Iterable[str]) -> Iterator[str]:
    """The formats among these that are of files, each by a name that stands beside those of keys.

    Without either an endpoint cannot be sent to, and daemons tell each other what they have of both.
    """
    return (f"format {name}" for name in formats if name not in FORMATS)


def endpoint_of_kept(kept: Kept, keyring: Keyring, defaults: Defaults) -> Endpoint:
    """What can be sent to. Unreadable when something of it cannot be opened, or makes no sense here."""
    names = {sealed.key_id for sealed, _ in kept.secrets} | {sealed.key_id for sealed in kept.values.values()}
    if not names:  # it would be taken for one of a file, which is guarded otherwise
        raise Unreadable("it has no secret")
    if kept.spec.get("format") not in defaults.formats:
        raise Unreadable(f"this daemon's files have no format {kept.spec.get('format')}")
    spec, values = kept.spec, {name: keyring.open(kept.id, sealed, name) for name, sealed in kept.values.items()}
    try:
        own = "hmac" in spec  # in the place of its signature
        keys = tuple(_key(keyring.open(kept.id, sealed), until, as_text=own) for sealed, until in kept.secrets)
        return Endpoint(
            id=kept.id,
            tenant=kept.tenant,
            name=kept.name,
            url=values.get(URL, spec["url"]),
            events=tuple(spec["events"]),
            format=defaults.formats[spec["format"]],
            signature=own_hmac(**spec["hmac"]) if own else SCHEMES[spec["signature"]],
            secrets=keys,
            retry=_retry(spec["retry"] or {}, defaults),
            timeout=spec["timeout"] or defaults.timeout,
            max_in_flight=spec["max_in_flight"] or defaults.max_in_flight,
            rate_limit=spec["rate_limit"],
            disable_after=DisableAfter(**spec["disable_after"]) if spec["disable_after"] else defaults.disable_after,
            active=spec["active"],
            filter=MappingProxyType({key: tuple(wanted) for key, wanted in spec["filter"].items()}),
            headers=tuple((name, values[HEADER + name]) for name in spec["headers"]),
            sealed_by=_same(frozenset(names | set(own_formats([spec["format"]])))),
            polled=spec.get("kind") == "poll",
        )
    except (KeyError, ValueError, TypeError) as error:
        raise Unreadable(f"it was made by another version of webhookd: {type(error).__name__}") from None


def _retry(said: Mapping[str, Any], defaults: Defaults) -> RetryPolicy:
    """The policy with what is said of it; waits of its own end a schedule that it would have."""
    schedule = tuple(said["schedule"]) if "schedule" in said else None
    if schedule is None:
        schedule = () if {"first", "factor", "max_interval"} & said.keys() else defaults.retry.schedule
    policy = replace(defaults.retry, **{**said, "schedule": schedule})
    ends = min(policy.give_up_after, defaults.give_up_most)
    return replace(policy, give_up_after=ends, first=min(policy.first, policy.max_interval))


@lru_cache(64)
def _same(names: frozenset[str]) -> frozenset[str]:
    return names  # which thousands of endpoints have: one object for all


def _key(secret: str, until: float | None, *, as_text: bool) -> Key:
    key = Key("text", secret.encode()) if as_text else parse_secret(secret)
    return key if until is None else Key(key.kind, key.raw, until)
