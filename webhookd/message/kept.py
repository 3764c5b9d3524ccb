"""Endpoints that are kept in the database, as the API has made them: what a daemon sends to, of what is there."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from webhookd.message.formats import FORMATS
from webhookd.message.sealing import Keyring, Sealed, Unreadable
from webhookd.message.signing import SCHEMES, parse_secret
from webhookd.model import DisableAfter, Endpoint, Key, RetryPolicy

URL, HEADER = "url", "header "  # names of what is sealed; a header's follows


class Kept(NamedTuple):
    """An endpoint as it is in the database: its spec, and what is sealed of it."""

    id: int
    tenant: str
    name: str
    spec: Mapping[str, Any]
    secrets: Sequence[tuple[Sealed, float | None]]  # with the moment from which each signs nothing
    values: Mapping[str, Sealed]


class Defaults(NamedTuple):
    """What it does not say itself."""

    timeout: float
    max_in_flight: int
    retry: RetryPolicy
    disable_after: DisableAfter | None = None


def endpoint_of_kept(kept: Kept, keyring: Keyring, defaults: Defaults) -> Endpoint:
    """What can be sent to. Unreadable when something of it cannot be opened, or makes no sense here."""
    spec, values = kept.spec, {name: keyring.open(kept.id, sealed, name) for name, sealed in kept.values.items()}
    try:
        keys = tuple(_key(keyring.open(kept.id, sealed), until) for sealed, until in kept.secrets)
        return Endpoint(
            id=kept.id,
            tenant=kept.tenant,
            name=kept.name,
            url=values.get(URL, spec["url"]),
            events=tuple(spec["events"]),
            format=FORMATS[spec["format"]],
            signature=SCHEMES[spec["signature"]],
            secrets=keys,
            retry=defaults.retry,
            timeout=defaults.timeout,
            max_in_flight=defaults.max_in_flight,
            rate_limit=spec["rate_limit"],
            disable_after=defaults.disable_after,
            active=spec["active"],
            filter=MappingProxyType({key: tuple(wanted) for key, wanted in spec["filter"].items()}),
            headers=tuple((name, values[HEADER + name]) for name in spec["headers"]),
            by_api=True,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise Unreadable(f"it was made by another version of webhookd: {type(error).__name__}") from None


def _key(secret: str, until: float | None) -> Key:
    key = parse_secret(secret)
    return key if until is None else Key(key.kind, key.raw, until)
