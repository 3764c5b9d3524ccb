"""The configuration the daemon runs on, made of parsed files and an environment; all mistakes are told at once.

files, environ ──▶ overlay ──▶ sections ──▶ formats ──▶ endpoints ──▶ Config
                      └───────────┴────────────┴───────────┴──▶ mistakes ──▶ ConfigError
"""

import hashlib
import json
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from ipaddress import ip_network
from types import MappingProxyType
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from pydantic import ValidationError

from webhookd.checks import Around, name_mistake, type_mistake
from webhookd.errors import ConfigError
from webhookd.formats import FORMATS
from webhookd.mistakes import Lines, Mistake, Place, read, told, unknown
from webhookd.model import Egress, Endpoint, Format, Proxy, RetryPolicy
from webhookd.overlay import overlay
from webhookd.reference import json_schema as json_schema
from webhookd.shapes import (
    NAMED,
    SECRETS,
    SECTIONS,
    Daemon,
    Database,
    Delivery,
    EgressTable,
    Endpoints,
    EndpointTable,
    EventType,
    FormatTable,
    Log,
    Retention,
    Retry,
    Shape,
)
from webhookd.signing import ONE_SECRET, PARSERS, SCHEMES, hmac_of_body, parse_secret
from webhookd.tls import tls_context
from webhookd.units import DAY, quoted, written_duration

_ANYWHERE: Final = Egress(allow_http=True, allow_networks=(ip_network("0.0.0.0/0"), ip_network("::/0")))
_EXPONENTIAL: Final = ("first", "factor", "max_interval")

Document = Mapping[str, Any]
ReadSecret = Callable[[str, str], str]  # (path, file that names it) -> text; ValueError says why not
S = TypeVar("S", bound=Shape)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the daemon can be told, checked and resolved; its repr shows no secret."""

    daemon: Daemon
    database: Database
    delivery: Delivery
    retry: RetryPolicy
    egress: Egress
    retention: Retention
    log: Log
    event_types: Mapping[str, EventType]
    endpoints: tuple[Endpoint, ...]
    specs: Mapping[tuple[str, str], dict[str, Any]] = field(
        repr=False
    )  # (tenant, name) -> all but what is secret, as JSON
    config_hash: str  # of what decides about deliveries; [database] and [log] may rightly differ between hosts


def build(
    document: Document,
    endpoint_documents: Sequence[tuple[str, Document]],
    environ: Mapping[str, str],
    read_secret: ReadSecret,
    origin: str = "webhookd.toml",
    lines: Lines = lambda file: {},
) -> Config:
    """The configuration in these documents; ConfigError with every mistake in them.

    `origin` and the first of each pair are the names of the files, as the sentences show them; `lines` is only asked
    about a file with a mistake.
    """
    documents = [(origin, document), *endpoint_documents]
    merged, variables, mistakes = overlay(document, environ, _named_variables(documents))
    places = {name: Place(origin, (name,), variables[name]) for name in SECTIONS}
    of_main = Around(environ, _beside(read_secret, origin), Egress())
    sections = {name: read(SECTIONS[name], merged.get(name, {}), places[name], mistakes, of_main) for name in SECTIONS}
    for file, tables in documents:
        mistakes += _strays(file, tables, main=tables is document)

    database, table = _get(sections, Database), _get(sections, Retry)
    if database.dsn.get_secret_value() and database.dsn_file:
        mistakes.append(places["database"].mistake("stands beside dsn; give only one of them", "dsn_file"))
    policy = _retry(RetryPolicy(), table)
    mistakes += _retry_mistakes(policy, table, places["retry"])

    event_types = _event_types(documents, mistakes)
    formats = _formats(documents, mistakes)
    # Where [egress] itself is wrong, nothing is said about addresses that it may have been meant to allow.
    egress = _egress(_get(sections, EgressTable), places["egress"], mistakes) if sections["egress"] else _ANYWHERE
    delivery = _get(sections, Delivery)
    found: list[tuple[Endpoint, dict[str, Any], str, Place]] = []
    for place, keys in _named("endpoint", documents, mistakes):
        signature = keys.get("signature")
        around = Around(
            environ,
            _beside(read_secret, place.file),
            egress,
            formats,
            PARSERS.get(signature, parse_secret) if isinstance(signature, str) else parse_secret,
        )
        if made := _endpoint(place, keys, around, policy, delivery, mistakes):
            found.append((*made, place))
    endpoints = tuple(endpoint for endpoint, *_ in found)
    if sections["retention"]:
        policies = (policy, *(endpoint.retry for endpoint in endpoints))
        mistakes += _retention_mistakes(_get(sections, Retention), policies, places["retention"])
    mistakes += _doubles((endpoint, place) for endpoint, _, _, place in found)
    if mistakes:
        raise ConfigError(told(mistakes, lines))

    return Config(
        daemon=_get(sections, Daemon),
        database=database,
        delivery=delivery,
        retry=policy,
        egress=egress,
        retention=_get(sections, Retention),
        log=_get(sections, Log),
        event_types=MappingProxyType(event_types),
        endpoints=endpoints,
        specs=MappingProxyType({(endpoint.tenant, endpoint.name): spec for endpoint, spec, *_ in found}),
        config_hash=_hash(
            sections, documents, sorted((e.tenant, e.name, json.dumps(spec), mark) for e, spec, mark, _ in found)
        ),
    )


def endpoints_directory(document: Document, environ: Mapping[str, str]) -> str:
    """Where the files of endpoints are, seen from the main file; the default where the key is wrong."""
    merged, *_ = overlay(document, environ)
    try:
        return Endpoints.model_validate(merged.get("endpoints", {})).directory
    except ValidationError:
        return Endpoints().directory


def _get(sections: Mapping[str, Shape | None], model: type[S]) -> S:
    """The section of this model; its defaults where it has a mistake."""
    return next((found for found in sections.values() if isinstance(found, model)), None) or model()


def _named_variables(documents: Iterable[tuple[str, Document]]) -> frozenset[str]:
    """Variables that hold a secret, whatever they are called."""
    documents = list(documents)
    tables = [table for _, table in _named("endpoint", documents, [])]
    names = [table.get("secret_env") for table in tables]
    for secrets in (table.get("secrets") for table in tables):
        if isinstance(secrets, list):
            names += [value.get("env") for value in secrets if isinstance(value, Mapping)]
    values = [table.get("headers") for table in tables] + [document.get("egress") for _, document in documents]
    for each in values:
        if isinstance(each, Mapping):
            names += [value.get("env") for value in each.values() if isinstance(value, Mapping)]
    return frozenset(name for name in names if isinstance(name, str))


def _strays(file: str, document: Document, main: bool) -> Iterator[Mistake]:
    """Tables of a document that it cannot have."""
    known = (*SECTIONS, *NAMED) if main else tuple(NAMED)
    for name in document:
        if name in known:
            continue
        if name in SECTIONS:
            hint = "; an endpoint is [endpoint.NAME]" if name == "endpoints" else ""
            yield Mistake(file, (name,), f"[{name}] belongs into the main file{hint}")
        else:
            yield Mistake(file, (name,), f"{quoted(name)} {unknown((name,), 'section', known)}")


def _named(
    kind: str, documents: Iterable[tuple[str, Document]], mistakes: list[Mistake]
) -> Iterator[tuple[Place, Document]]:
    """Each [KIND.NAME] with a proper name."""
    name_wrong = type_mistake if kind == "event_types" else name_mistake
    for file, document in documents:
        tables = document.get(kind, {})
        if not isinstance(tables, Mapping):
            mistakes.append(Mistake(file, (kind,), f"{kind} wants tables; write [{kind}.NAME]"))
            continue
        for name, table in tables.items():
            if mistake := name_wrong(name):
                mistakes.append(Mistake(file, (kind, name), f"[{kind}] {mistake}"))
            elif not isinstance(table, Mapping):
                mistakes.append(Place(file, (kind,)).mistake(f"wants a table; write [{kind}.NAME]", name))
            else:
                yield Place(file, (kind, name)), table


def _once(
    kind: str, documents: Iterable[tuple[str, Document]], mistakes: list[Mistake]
) -> Iterator[tuple[str, Place, Document]]:
    """Each [KIND.NAME], by name, of a kind whose names are unique over all files."""
    files: dict[str, str] = {}
    for place, table in _named(kind, documents, mistakes):
        name = place.path[-1]
        if (other := files.setdefault(name, place.file)) != place.file:
            mistakes.append(place.mistake(f"is also in {other}; give it once"))
        else:
            yield name, place, table


def _egress(table: EgressTable, place: Place, mistakes: list[Mistake]) -> Egress:
    proxy = None
    if table.proxy:
        address = urlsplit(table.proxy)
        proxy = Proxy(address.hostname or "", address.port or 0, table.proxy_authorization)
    elif table.proxy_authorization:
        mistakes.append(place.mistake("goes with proxy; write proxy too, or neither", "proxy_authorization"))
    return Egress(table.allow_http, table.allow_networks, proxy)


def _event_types(documents: Iterable[tuple[str, Document]], mistakes: list[Mistake]) -> dict[str, EventType]:
    types: dict[str, EventType] = {}
    for name, place, table in _once("event_types", documents, mistakes):
        tables = [key for key, value in table.items() if isinstance(value, Mapping)]
        if inner := next((key for key in tables if key not in EventType.model_fields), None):
            # [event_types.order.status] is TOML for a table in a table.
            whole = quoted(f"{name}.{inner}")
            mistakes.append(place.mistake(f"a name with dots wants quotes; write [event_types.{whole}]", inner))
        elif made := read(EventType, table, place, mistakes):
            types[name] = made
    return types


def _formats(documents: Iterable[tuple[str, Document]], mistakes: list[Mistake]) -> dict[str, Format]:
    formats: dict[str, Format] = dict(FORMATS)
    for name, place, table in _once("formats", documents, mistakes):
        if name in FORMATS:
            mistakes.append(place.mistake("is built in; choose another name"))
        else:
            made = read(FormatTable, table, place, mistakes)
            formats[name] = made.body if made else FORMATS["standard"]  # a name that is known, to complain only once
    return formats


def _endpoint(
    place: Place, table: Document, around: Around, policy: RetryPolicy, delivery: Delivery, mistakes: list[Mistake]
) -> tuple[Endpoint, dict[str, Any], str] | None:
    """The endpoint, its spec and a hash of what the spec leaves out; None after adding its mistakes."""
    mistakes += _signature_mistakes(table, place)
    made = read(EndpointTable, table, place, mistakes, around)
    if made is None:
        return None
    name = place.path[-1]
    retry = _retry(policy, made.retry)
    mistakes += _retry_mistakes(retry, made.retry, place, "retry")
    tls = _tls(made, place, mistakes)
    endpoint = Endpoint(
        id=0,
        tenant=made.tenant,
        name=name,
        url=made.url,
        events=made.events,
        format=around.formats[made.format],
        # "hmac" without its table has been complained of.
        signature=hmac_of_body(**made.hmac.model_dump()) if made.hmac else SCHEMES.get(made.signature, SCHEMES["none"]),
        secrets=made.keys,
        retry=retry,
        timeout=delivery.timeout if made.timeout is None else made.timeout,
        max_in_flight=delivery.max_in_flight_per_endpoint if made.max_in_flight is None else made.max_in_flight,
        rate_limit=made.rate_limit or 0.0,
        active=made.active,
        filter=MappingProxyType(made.filter),
        headers=tuple(made.headers.items()),
        tls=tls,
    )
    spec = {
        **{key: getattr(made, key) for key in ("tenant", "description", "active", "signature", "format")},
        "url": made.url.partition("?")[0],  # a query may be a token
        "name": name,
        "events": list(made.events),
        "headers": sorted(made.headers),
        "tls": sorted(made.tls.model_fields_set) if made.tls else [],
        "timeout": endpoint.timeout,
        "max_in_flight": endpoint.max_in_flight,
        "rate_limit": endpoint.rate_limit,
        "retry": {**asdict(retry), "schedule": list(retry.schedule)},
        "filter": {key: list(values) for key, values in made.filter.items()},
    }
    if made.hmac:
        spec["hmac"] = made.hmac.model_dump()
    return endpoint, spec, _fingerprint(table, made)


def _tls(made: EndpointTable, place: Place, mistakes: list[Mistake]) -> ssl.SSLContext | None:
    if made.tls is None:
        return None
    if made.tls.key_file and not made.tls.certificate_file:
        mistakes.append(place.mistake("wants certificate_file beside it", "tls", "key_file"))
        return None
    try:
        return tls_context(made.tls.ca_file, made.tls.certificate_file, made.tls.key_file)
    except ValueError as error:
        mistakes.append(place.mistake(str(error), "tls"))
        return None


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


def _retry(base: RetryPolicy, table: Retry) -> RetryPolicy:
    """The policy with what the table says itself; an exponential key ends a schedule that was inherited."""
    said = {key: getattr(table, key) for key in table.model_fields_set}
    if "schedule" not in said and not said.keys().isdisjoint(_EXPONENTIAL):
        said["schedule"] = ()
    return replace(base, **said)


def _retry_mistakes(policy: RetryPolicy, table: Retry, place: Place, *keys: str) -> Iterator[Mistake]:
    """What the keys of a retry table say against each other; `keys` lead to it."""
    if table.schedule and (extra := table.model_fields_set.intersection(_EXPONENTIAL)):
        yield place.mistake(f"replaces {' and '.join(sorted(extra))}; give only one of them", *keys, "schedule")
    elif not policy.schedule and policy.first > policy.max_interval:
        yield place.mistake("is longer than max_interval; shorten it or raise max_interval", *keys, "first")


def _retention_mistakes(retention: Retention, policies: Iterable[RetryPolicy], place: Place) -> Iterator[Mistake]:
    longest = max(policy.give_up_after for policy in policies)
    for key in ("events", "attempts"):
        if getattr(retention, key) < longest + DAY:
            least, given = written_duration(longest + DAY), written_duration(longest)
            yield place.mistake(
                f'must be at least "{least}", a day longer than the longest give_up_after, which is "{given}"', key
            )


def _doubles(endpoints: Iterable[tuple[Endpoint, Place]]) -> Iterator[Mistake]:
    files: dict[tuple[str, str], str] = {}
    for endpoint, place in endpoints:
        if (other := files.setdefault((endpoint.tenant, endpoint.name), place.file)) != place.file:
            where = f"of tenant {quoted(endpoint.tenant)} " if endpoint.tenant else ""
            yield place.mistake(f"{where}is also in {other}; rename one of them")


def _beside(read_secret: ReadSecret, file: str) -> Callable[[str], str]:
    return lambda path: read_secret(path, file)


def _hash(sections: Mapping[str, Any], documents: Iterable[tuple[str, Document]], specs: Iterable[Any]) -> str:
    """16 hex digits over what decides about deliveries; secrets, header values and templates as the files have them."""
    written = {name: sections[name].model_dump(mode="json") for name in ("delivery", "retry", "egress")}
    written["daemon"] = sections["daemon"].environment  # whether files are watched is each host's own business
    formats = {name: table for _, document in documents for name, table in document.get("formats", {}).items()}
    canonical = json.dumps([written, formats, list(specs)], sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _fingerprint(table: Document, made: EndpointTable) -> str:
    """A hash of what an endpoint's spec leaves out."""
    fixed = {name: value for name, value in made.headers.items() if isinstance(value, str)}
    tls = made.tls and made.tls.model_dump()
    left_out = [made.url, table.get("headers"), fixed, tls, [(key.kind, key.raw.hex(), key.until) for key in made.keys]]
    return hashlib.sha256(json.dumps(left_out, sort_keys=True).encode()).hexdigest()
