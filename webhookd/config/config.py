"""The configuration the daemon runs on, made of parsed files and an environment; all mistakes are told at once.

files, environ ──▶ overlay ──▶ sections ──▶ formats ──▶ endpoints ──▶ Config
                      └───────────┴────────────┴───────────┴──▶ mistakes ──▶ ConfigError
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from types import MappingProxyType
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from pydantic import ValidationError

from webhookd.config.checks import Around, name_mistake, type_mistake
from webhookd.config.endpoint import endpoint_of, endpoint_policy, retry_mistakes, retry_policy
from webhookd.config.environment import overlay, variables_of
from webhookd.config.mistakes import MOST_TOLD, UNTOLD, Lines, Mistake, Place, read, told, unknown
from webhookd.config.named import NAMED, EventType, FormatTable
from webhookd.config.reference import json_schema as json_schema
from webhookd.config.schema import (
    SECTIONS,
    Api,
    Daemon,
    Database,
    Delivery,
    EgressTable,
    Encryption,
    Endpoints,
    Log,
    Metrics,
    Retention,
    Retry,
    Shape,
    Traces,
)
from webhookd.errors import ConfigError
from webhookd.message.formats import FORMATS
from webhookd.message.signing import PARSERS, parse_secret
from webhookd.model import Egress, Endpoint, Format, Proxy, RetryPolicy
from webhookd.units import DAY, quoted, written_duration

_ANYWHERE: Final = Egress(allow_http=True, allow_networks=(ip_network("0.0.0.0/0"), ip_network("::/0")))

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
    encryption: Encryption
    api: Api
    metrics: Metrics
    traces: Traces
    log: Log
    event_types: Mapping[str, EventType]
    formats: Mapping[str, Format]  # those of its own, and those that are built in
    endpoints: tuple[Endpoint, ...]
    specs: Mapping[tuple[str, str], dict[str, Any]] = field(
        repr=False
    )  # (tenant, name) -> all but what is secret, as JSON
    config_hash: str  # of what decides about deliveries; [database] and [log] may rightly differ between hosts
    empty: str = ""  # where it has no endpoint at all: the sentence to refuse it with, unless nobody would miss one


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
    named = frozenset(_named_variables([table for _, table in documents]))
    merged, variables, mistakes = overlay(document, environ, named)
    places = {name: Place(origin, (name,), variables[name]) for name in SECTIONS}
    of_main = Around(environ, _beside(read_secret, origin), Egress())
    sections = {name: read(SECTIONS[name], merged.get(name, {}), places[name], mistakes, of_main) for name in SECTIONS}
    for file, tables in documents:
        _find_strays(file, tables, mistakes, main=tables is document)

    database, table = _get(sections, Database), _get(sections, Retry)
    mistakes += _database_mistakes(merged.get("database"), places["database"])
    policy = retry_policy(RetryPolicy(), table)
    mistakes += retry_mistakes(policy, table, places["retry"])

    event_types = _event_types(documents, mistakes)
    formats = _formats(documents, mistakes)
    # Where [egress] itself is wrong, nothing is said about addresses that it may have been meant to allow.
    egress = egress_of(_get(sections, EgressTable)) if sections["egress"] else _ANYWHERE
    mistakes += _egress_mistakes(merged.get("egress"), places["egress"])
    delivery = _get(sections, Delivery)
    found: list[tuple[Endpoint, dict[str, Any], str]] = []
    policies = [policy]
    named_so: list[tuple[tuple[str, str], Place]] = []
    for place, keys in _named("endpoint", documents, mistakes):
        named_so.append(((str(keys.get("tenant", "")), place.path[-1]), place))
        policies.append(endpoint_policy(place, keys, policy, mistakes))
        signature = keys.get("signature")
        around = Around(
            environ,
            _beside(read_secret, place.file),
            egress,
            formats,
            PARSERS.get(signature, parse_secret) if isinstance(signature, str) else parse_secret,
        )
        if made := endpoint_of(place, keys, around, policies[-1], delivery, mistakes):
            found.append(made)
    endpoints = tuple(endpoint for endpoint, *_ in found)
    if sections["retention"]:
        retention = _get(sections, Retention)
        mistakes += _retention_mistakes(retention, policies, places["retention"])
        mistakes += _ledger_mistakes(retention, [endpoint for endpoint, *_ in found], places["retention"])
    mistakes += _doubles(named_so)
    if mistakes:
        raise ConfigError(told(mistakes, lines))

    return Config(
        daemon=_get(sections, Daemon),
        database=database,
        delivery=delivery,
        retry=policy,
        egress=egress,
        retention=_get(sections, Retention),
        encryption=_get(sections, Encryption),
        api=_get(sections, Api),
        metrics=_get(sections, Metrics),
        traces=_get(sections, Traces),
        log=_get(sections, Log),
        event_types=MappingProxyType(event_types),
        formats=MappingProxyType(formats),
        endpoints=endpoints,
        specs=MappingProxyType({(endpoint.tenant, endpoint.name): spec for endpoint, spec, _ in found}),
        config_hash=_hash(
            sections, documents, sorted((e.tenant, e.name, json.dumps(spec), mark) for e, spec, mark in found)
        ),
    )


def section(
    model: type[S],
    document: Document,
    environ: Mapping[str, str],
    read_secret: ReadSecret,
    origin: str,
    lines: Lines = lambda file: {},
) -> S:
    """One section of a main file with the environment over it; ConfigError with its mistakes, and no others."""
    name = next(name for name, each in SECTIONS.items() if each is model)
    merged, variables, mistakes = overlay(document, variables_of(name, environ))
    place = Place(origin, (name,), variables[name])
    made = read(model, merged.get(name, {}), place, mistakes, Around(environ, _beside(read_secret, origin), Egress()))
    if model is Database:
        mistakes += _database_mistakes(merged.get(name), place)
    if model is EgressTable:
        mistakes += _egress_mistakes(merged.get(name), place)
    if made is None or mistakes:
        raise ConfigError(told(mistakes, lines))
    return made


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


def _named_variables(value: object) -> Iterator[str]:
    """Variables that hold a secret, whatever they are called: all that a table says is in the environment."""
    if isinstance(value, Mapping):
        yield from (name for key in ("env", "secret_env") if isinstance(name := value.get(key), str))
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _named_variables(each)


def _find_strays(file: str, document: Document, mistakes: list[Mistake], main: bool) -> None:
    """Add the tables of a document that it cannot have."""
    known = (*SECTIONS, *NAMED) if main else tuple(NAMED)
    for name in document:
        if name in known:
            continue
        if len(mistakes) >= MOST_TOLD:
            mistakes.append(UNTOLD)
        elif name in SECTIONS:
            hint = "; an endpoint is [endpoint.NAME]" if name == "endpoints" else ""
            mistakes.append(Mistake(file, (name,), f"[{name}] belongs into the main file{hint}"))
        else:
            mistakes.append(Mistake(file, (name,), f"{quoted(name)} {unknown((name,), 'section', known)}"))


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


def _egress_mistakes(table: object, place: Place) -> Iterator[Mistake]:
    if isinstance(table, Mapping) and table.get("proxy_authorization") and not table.get("proxy"):
        yield place.mistake("goes with proxy; write proxy too, or neither", "proxy_authorization")


def egress_of(table: EgressTable) -> Egress:
    """What this section means to whoever sends."""
    proxy = None
    if table.proxy:
        address = urlsplit(table.proxy)
        proxy = Proxy(address.hostname or "", address.port or 0, table.proxy_authorization)
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


def _database_mistakes(table: object, place: Place) -> Iterator[Mistake]:
    if isinstance(table, Mapping) and table.get("dsn") and table.get("dsn_file"):
        yield place.mistake("stands beside dsn; give only one of them", "dsn_file")


def _retention_mistakes(retention: Retention, policies: Iterable[RetryPolicy], place: Place) -> Iterator[Mistake]:
    longest = max(policy.give_up_after for policy in policies)
    for key in ("events", "attempts"):
        if getattr(retention, key) < longest + DAY:
            least, given = written_duration(longest + DAY), written_duration(longest)
            yield place.mistake(
                f'must be at least "{least}", a day longer than the longest give_up_after, which is "{given}"', key
            )


def _ledger_mistakes(retention: Retention, endpoints: Iterable[Endpoint], place: Place) -> Iterator[Mistake]:
    longest = max((each.disable_after.seconds for each in endpoints if each.disable_after), default=0.0)
    if retention.attempts < longest:
        given = written_duration(longest)
        yield place.mistake(
            f'must be at least "{given}", which is how far the longest disable_after looks back', "attempts"
        )


def _doubles(endpoints: Iterable[tuple[tuple[str, str], Place]]) -> Iterator[Mistake]:
    files: dict[tuple[str, str], str] = {}
    for (tenant, name), place in endpoints:
        if (other := files.setdefault((tenant, name), place.file)) != place.file:
            where = f"of tenant {quoted(tenant)} " if tenant else ""
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
