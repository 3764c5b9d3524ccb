"""The endpoint that a table of the configuration describes, and what the keys of the table say against each other."""

import hashlib
import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from webhookd.config.checks import Around
from webhookd.config.mistakes import Mistake, Place, read
from webhookd.config.named import SECRETS, EndpointTable, Hmac
from webhookd.config.schema import Delivery, Retry
from webhookd.config.schema import DisableAfter as DisableAfterTable
from webhookd.egress.tls import tls_context
from webhookd.message import own_signature
from webhookd.message.signing import ONE_SECRET, SCHEMES
from webhookd.model import Condition, DisableAfter, Endpoint, Grant, RetryPolicy, Scheme
from webhookd.policy.payload_filter import spelled
from webhookd.units import quoted

MADE: Final = "ep_"  # how the names of endpoints begin that the API makes
_POLICY: Final = [field.name for field in fields(RetryPolicy)]
_EXPONENTIAL: Final = ("first", "factor", "max_interval")

# What only those have that are sent to.
SENT_ALONE: Final = frozenset(
    (
        "url",
        "tls",
        "auth",
        "timeout",
        "max_in_flight",
        "rate_limit",
        "retry",
        "disable_after",
        "disable_on_request",
        "ordered",
    )
)

Document = Mapping[str, Any]


def endpoint_of(
    place: Place, table: Document, around: Around, retry: RetryPolicy, delivery: Delivery, mistakes: list[Mistake]
) -> tuple[Endpoint, dict[str, Any], str] | None:
    """The endpoint, its spec and a hash of what the spec leaves out; None after adding its mistakes."""
    mistakes += _signature_mistakes(table, place)
    mistakes += _pair_mistakes(table, place)
    made = read(EndpointTable, table, place, mistakes, around)
    if made is None:
        return None
    name = place.path[-1]
    if name.startswith(MADE):
        mistakes.append(place.mistake(f"names that begin with {MADE} are those of the API; choose another"))
    if made.hmac:
        mistakes += _hmac_mistakes(made.hmac, made, place)
    tls = _tls(made, place, mistakes)
    labels, conditions = _split(made.filter)
    endpoint = Endpoint(
        id=0,
        tenant=made.tenant,
        name=name,
        url=made.url,
        events=made.events,
        format=around.formats[made.format],
        signature=_signature(made),
        secrets=made.keys,
        retry=retry,
        timeout=delivery.timeout if made.timeout is None else made.timeout,
        max_in_flight=_slots(made, delivery),
        rate_limit=made.rate_limit or 0.0,
        active=made.active,
        filter=MappingProxyType(labels),
        data_filter=conditions,
        headers=tuple(made.headers.items()),
        tls=tls,
        grant=_grant(made),
        disable_after=disable_after(delivery.disable_after if made.disable_after is None else made.disable_after),
        disable_on_request=made.disable_on_request,
        ordered=made.ordered,
        polled=made.kind == "poll",
        holds=bool(made.ordered) and made.on_exhausted == "hold",
    )
    spec = {
        **{key: getattr(made, key) for key in ("tenant", "description", "active", "signature", "format")},
        "url": made.url.partition("?")[0],  # a query may be a token
        "name": name,
        "events": list(made.events),
        "headers": sorted(made.headers),
        "tls": sorted(made.tls.model_fields_set) if made.tls else [],
        "auth": made.auth.model_dump(include={"client_id", "scope", "audience"}) if made.auth else None,
        "timeout": endpoint.timeout,
        "max_in_flight": endpoint.max_in_flight,
        "rate_limit": endpoint.rate_limit,
        "retry": {**{key: getattr(retry, key) for key in _POLICY}, "schedule": list(retry.schedule)},
        "filter": {key: list(values) for key, values in labels.items()},
        "disable_after": endpoint.disable_after and endpoint.disable_after._asdict(),
        "disable_on_request": made.disable_on_request,
        "ordered": made.ordered,
        "on_exhausted": made.on_exhausted,
    }
    if endpoint.polled:
        spec["kind"] = "poll"
    if conditions:
        spec["data_filter"] = spelled(conditions)
    if made.hmac:
        spec["hmac"] = made.hmac.model_dump()
    return endpoint, spec, _fingerprint(table, made)


def _split(
    filter_: Mapping[str, tuple[str, ...] | tuple[Condition, ...]],
) -> tuple[dict[str, tuple[str, ...]], tuple[Condition, ...]]:
    """What is said of metadata, and of payloads."""
    labels, conditions = dict[str, tuple[str, ...]](), list[Condition]()
    for key, passing in filter_.items():
        if texts := tuple(each for each in passing if isinstance(each, str)):
            labels[key] = texts
        conditions += [each for each in passing if isinstance(each, Condition)]
    return labels, tuple(conditions)


def _signature(made: EndpointTable) -> Scheme:
    if made.hmac is None:
        return SCHEMES.get(made.signature, SCHEMES["none"])  # "hmac" without its table has been complained of
    return own_signature.own_hmac(**made.hmac.model_dump())


def _hmac_mistakes(hmac: Hmac, made: EndpointTable, place: Place) -> Iterator[Mistake]:
    """What its keys say against each other, and against the headers of the endpoint."""
    own = set(map(str.lower, made.headers))
    taken = {"authorization"} if made.auth else set[str]()
    said = hmac.header, hmac.timestamp_header, hmac.timestamp, hmac.signed
    for key, sentence in own_signature.conflicts(*said, own, taken):
        yield place.mistake(sentence, "hmac", key)


def _slots(made: EndpointTable, delivery: Delivery) -> int:
    if made.ordered is True:
        return 1
    return delivery.max_in_flight_per_endpoint if made.max_in_flight is None else made.max_in_flight


def _tls(made: EndpointTable, place: Place, mistakes: list[Mistake]) -> ssl.SSLContext | None:
    if made.tls is None or (made.tls.key_file and not made.tls.certificate_file):
        return None
    try:
        return tls_context(made.tls.ca_file, made.tls.certificate_file, made.tls.key_file)
    except ValueError as error:
        mistakes.append(place.mistake(str(error), "tls"))
        return None


def disable_after(table: DisableAfterTable) -> DisableAfter | None:
    """What a table of it says; None for never."""
    return DisableAfter(table.failures, table.for_) if table.failures else None


def _grant(made: EndpointTable) -> Grant | None:
    if made.auth is None:
        return None
    told = made.auth.model_dump(exclude={"client_authentication"})
    return Grant(**told, in_body=made.auth.client_authentication == "post")


def _pair_mistakes(table: Document, place: Place) -> Iterator[Mistake]:
    """What keys say against each other, of the table as it is written: it may have other mistakes beside these."""
    if table.get("kind") == "poll":
        for key in SENT_ALONE.intersection(table):
            yield place.mistake('means nothing with kind = "poll", which is fetched; remove it', key)
    elif "url" not in table:
        yield place.mistake("is required", "url")
    tls, headers = table.get("tls"), table.get("headers")
    if isinstance(tls, Mapping) and tls.get("key_file") and not tls.get("certificate_file"):
        yield place.mistake("wants certificate_file beside it", "tls", "key_file")
    ordered = table.get("ordered", False)
    if "on_exhausted" in table and ordered is False:
        yield place.mistake('goes with ordered; write ordered = true or ordered = "key" beside it', "on_exhausted")
    if ordered is True and table.get("max_in_flight", 1) != 1:
        yield place.mistake("is 1 with ordered = true; remove it", "max_in_flight")
    if "auth" in table and isinstance(headers, Mapping) and "authorization" in map(str.lower, headers):
        yield place.mistake("stands beside headers.authorization; give only one of them", "auth")


def _signature_mistakes(table: Document, place: Place) -> Iterator[Mistake]:
    given = [key for key in SECRETS if key in table]
    signature = table.get("signature")
    if (signature == "hmac") != ("hmac" in table):
        yield place.mistake('goes with signature = "hmac"; write hmac = { header = "x-signature" }, or neither', "hmac")
    if isinstance(secrets := table.get("secrets"), list) and secrets:
        staying = sum(not (isinstance(each, Mapping) and "until" in each) for each in secrets)
        if not staying:
            yield place.mistake("all end; one must have no until", "secrets")
        elif signature in ONE_SECRET and staying > 1:
            room = f"has room for one with signature = {quoted(str(signature))}; give the others an until"
            yield place.mistake(room, "secrets")
    if signature == "none":
        if given:
            yield place.mistake('signature = "none" uses no secret; remove one or the other', given[0])
    elif not given:
        ways = f"{', '.join(SECRETS[:-1])} or {SECRETS[-1]}"
        yield place.mistake(f'is required, as {ways}, unless signature = "none"', "secret")
    elif len(given) > 1:
        yield place.mistake(f"stands beside {' and '.join(given[:-1])}; give only one of them", given[-1])


def endpoint_policy(place: Place, table: Document, base: RetryPolicy, mistakes: list[Mistake]) -> RetryPolicy:
    """The policy of an endpoint, whatever else is wrong with it; `base` where its own table is, which is told later."""
    if "retry" not in table:
        return base
    try:
        retry = Retry.model_validate(table["retry"])
    except ValidationError:
        return base
    made = retry_policy(base, retry)
    mistakes += retry_mistakes(made, retry, place, "retry")
    return made


def retry_policy(base: RetryPolicy, table: Retry) -> RetryPolicy:
    """The policy with what the table says itself; an exponential key ends a schedule that was inherited."""
    said = {key: getattr(table, key) for key in table.model_fields_set}
    if "schedule" not in said and not said.keys().isdisjoint(_EXPONENTIAL):
        said["schedule"] = ()
    return replace(base, **said)


def retry_mistakes(policy: RetryPolicy, table: Retry, place: Place, *keys: str) -> Iterator[Mistake]:
    """What the keys of a retry table say against each other; `keys` lead to it."""
    if table.schedule and (extra := table.model_fields_set.intersection(_EXPONENTIAL)):
        yield place.mistake(f"replaces {' and '.join(sorted(extra))}; give only one of them", *keys, "schedule")
    elif not policy.schedule and policy.first > policy.max_interval:
        yield place.mistake("is longer than max_interval; shorten it or raise max_interval", *keys, "first")


def _fingerprint(table: Document, made: EndpointTable) -> str:
    """A hash of what an endpoint's spec leaves out."""
    fixed = {name: value for name, value in made.headers.items() if isinstance(value, str)}
    tables = [made.tls and made.tls.model_dump(), made.auth and made.auth.model_dump()]
    left_out = [
        made.url,
        table.get("headers"),
        fixed,
        tables,
        [(key.kind, key.raw.hex(), key.until) for key in made.keys],
    ]
    return hashlib.sha256(json.dumps(left_out, sort_keys=True).encode()).hexdigest()
