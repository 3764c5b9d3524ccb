"""The configuration the daemon runs on, made of parsed files and an environment; all mistakes are told at once.

files, environ ──▶ overlay ──▶ sections ──▶ formats ──▶ endpoints ──▶ Config
                      └───────────┴────────────┴───────────┴──▶ mistakes ──▶ ConfigError
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, get_origin

from pydantic import BaseModel, ValidationError

from webhookd.errors import ConfigError
from webhookd.formats import FORMATS
from webhookd.mistakes import meant, read
from webhookd.model import Endpoint, Format, RetryPolicy
from webhookd.shapes import (
    SECRETS,
    Around,
    Daemon,
    Database,
    Delivery,
    Egress,
    Endpoints,
    EndpointTable,
    FormatTable,
    Keys,
    Log,
    Retry,
    name_mistake,
)
from webhookd.signing import SCHEMES
from webhookd.units import quoted

SECTIONS: Final[Mapping[str, type[BaseModel]]] = MappingProxyType(
    {
        "daemon": Daemon,
        "database": Database,
        "delivery": Delivery,
        "retry": Retry,
        "egress": Egress,
        "log": Log,
        "endpoints": Endpoints,
    }
)
_TABLES = ("formats", "endpoint")  # tables of named tables, which may also stand in the files of endpoints
_VARIABLE = re.compile(r"WEBHOOKD_([A-Z0-9]+)__([A-Z0-9_]+)")
_ANYWHERE = {"allow_http": True, "allow_networks": ["0.0.0.0/0", "::/0"]}
_EXPONENTIAL = ("first", "factor", "max_interval")

Document = Mapping[str, Any]
ReadSecret = Callable[[str, str], str]  # (path, file that names it) -> text; ValueError says why not


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the daemon can be told, checked and resolved; its repr shows no secret."""

    daemon: Daemon
    database: Database
    delivery: Delivery
    retry: RetryPolicy
    egress: Egress
    log: Log
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
) -> Config:
    """The configuration in these documents; ConfigError with every mistake in them.

    `origin` and the first of each pair are the names of the files, as the sentences show them.
    """
    mistakes: list[str] = []
    documents = [(origin, document), *endpoint_documents]
    merged, overridden = _overlay(document, environ, _named_variables(documents), mistakes)

    sections = {name: _section(name, merged.get(name, {}), origin, overridden, mistakes) for name in SECTIONS}
    for file, tables in documents:
        mistakes += _strays(file, tables, main=tables is document)
    table = sections["retry"] or Retry()
    policy = _retry(RetryPolicy(), table)
    if mistake := _retry_mistake(policy, table):
        mistakes.append(_setting(origin, "retry", overridden)(mistake))

    formats = _formats(documents, mistakes)
    # Where [egress] itself is wrong, nothing is said about addresses that it may have been meant to allow.
    egress = sections["egress"] or Egress.model_validate(_ANYWHERE)
    delivery = sections["delivery"] or Delivery()
    found: list[tuple[Endpoint, dict[str, Any], str, str]] = []
    for file, name, keys in _named("endpoint", documents, mistakes):
        around = Around(egress.allow_http, egress.allow_networks, formats, environ, _beside(read_secret, file))
        if made := _endpoint(file, name, keys, around, policy, delivery, mistakes):
            found.append((*made, file))
    mistakes += _doubles((endpoint, file) for endpoint, _, _, file in found)
    if mistakes:
        raise ConfigError(mistakes)

    return Config(
        sections["daemon"],
        sections["database"],
        delivery,
        policy,
        egress,
        sections["log"],
        tuple(endpoint for endpoint, *_ in found),
        MappingProxyType({(endpoint.tenant, endpoint.name): spec for endpoint, spec, *_ in found}),
        _hash(sections, documents, sorted((e.tenant, e.name, json.dumps(spec), mark) for e, spec, mark, _ in found)),
    )


def endpoints_directory(document: Document, environ: Mapping[str, str]) -> str:
    """Where the files of endpoints are, seen from the main file; the default where the key is wrong."""
    merged, _ = _overlay(document, environ, frozenset(), [])
    try:
        return Endpoints.model_validate(merged.get("endpoints", {})).directory
    except ValidationError:
        return Endpoints().directory


def _overlay(
    document: Document, environ: Mapping[str, str], named: frozenset[str], mistakes: list[str]
) -> tuple[dict[str, Any], dict[tuple[str, str], str]]:
    """The document with the environment's values over it, and which variable each of those came from."""
    merged = {name: dict(table) if isinstance(table, Mapping) else table for name, table in document.items()}
    known = {f"WEBHOOKD_{s}__{k}".upper(): (s, k) for s, model in SECTIONS.items() for k in model.model_fields}
    known["WEBHOOKD_DSN"] = ("database", "dsn")
    overridden: dict[tuple[str, str], str] = {}
    for variable, text in sorted(environ.items()):
        if variable not in known:
            if _VARIABLE.fullmatch(variable) and variable not in named:
                mistakes.append(f"{variable}: is no setting{meant(variable, known)}")
            continue
        section, key = known[variable]
        if other := overridden.get((section, key)):
            mistakes.append(f"{other} and {variable}: set only one of them")
        overridden[section, key] = variable
        table = merged.setdefault(section, {})
        if isinstance(table, dict):
            table[key] = _typed(SECTIONS[section].model_fields[key].annotation, text)
    # One way to name the database in the environment replaces the other way in the file.
    database = merged.get("database")
    for key, other in (("dsn", "dsn_file"), ("dsn_file", "dsn")):
        if isinstance(database, dict) and ("database", key) in overridden and ("database", other) not in overridden:
            database.pop(other, None)
    return merged, overridden


def _typed(annotation: object, text: str) -> object:
    """A variable's text as the file would have given it; what does not parse is left for the validator."""
    if get_origin(annotation) is tuple:
        return [each.strip() for each in text.split(",") if each.strip()]
    if annotation in (bool, int, float):
        try:
            value = json.loads(text)
        except ValueError:
            return text
        return value if isinstance(value, (bool, int, float)) else text
    return text


def _named_variables(documents: Iterable[tuple[str, Document]]) -> frozenset[str]:
    """Variables that hold an endpoint's secret, whatever they are called."""
    tables = [table for _, _, table in _named("endpoint", documents, [])]
    return frozenset(name for table in tables if isinstance(name := table.get("secret_env"), str))


def _section(
    name: str, table: object, origin: str, overridden: Mapping[tuple[str, str], str], mistakes: list[str]
) -> Any:
    place = _setting(origin, name, overridden)
    found = read(SECTIONS[name], table, place, mistakes)
    if isinstance(found, Database) and found.dsn.get_secret_value() and found.dsn_file:
        mistakes.append(place("dsn_file: stands beside dsn; give only one of them"))
    return found


def _setting(origin: str, section: str, overridden: Mapping[tuple[str, str], str]) -> Callable[[str], str]:
    """Puts before a mistake, which begins with a key, its place: the file and section, or the variable."""

    def place(mistake: str) -> str:
        key = re.split(r"[ :]", mistake, maxsplit=1)[0]
        if variable := overridden.get((section, key)):
            return variable + mistake.removeprefix(key)
        return f"{origin}: [{section}] {mistake}"

    return place


def _strays(file: str, document: Document, main: bool) -> Iterator[str]:
    """Tables of a document that it cannot have."""
    known = (*SECTIONS, *_TABLES) if main else _TABLES
    for name in document:
        if name in known:
            continue
        if name in SECTIONS:
            hint = "; an endpoint is [endpoint.NAME]" if name == "endpoints" else ""
            yield f"{file}: [{name}] belongs into the main file{hint}"
        else:
            yield f"{file}: {quoted(name)} is no section{meant(name, known)}"


def _named(
    kind: str, documents: Iterable[tuple[str, Document]], mistakes: list[str]
) -> Iterator[tuple[str, str, Document]]:
    """(file, name, table) of each [KIND.NAME] with a proper name."""
    for file, document in documents:
        tables = document.get(kind, {})
        if not isinstance(tables, Mapping):
            mistakes.append(f"{file}: {kind} wants tables; write [{kind}.NAME]")
            continue
        for name, table in tables.items():
            if mistake := name_mistake(name):
                mistakes.append(f"{file}: [{kind}] {mistake}")
            elif not isinstance(table, Mapping):
                mistakes.append(f"{file}: [{kind}] {name}: wants a table; write [{kind}.NAME]")
            else:
                yield file, name, table


def _formats(documents: Sequence[tuple[str, Document]], mistakes: list[str]) -> dict[str, Format]:
    formats: dict[str, Format] = dict(FORMATS)
    files: dict[str, str] = {}
    for file, name, table in _named("formats", documents, mistakes):
        if name in FORMATS:
            mistakes.append(f"{file}: [formats.{name}] is built in; choose another name")
        elif name in files:
            mistakes.append(f"{file}: [formats.{name}] is also in {files[name]}; give it once")
        else:
            files[name] = file
            made = read(FormatTable, table, _placed(file, "formats", name), mistakes)
            formats[name] = made.body if made else FORMATS["standard"]  # a name that is known, to complain only once
    return formats


def _endpoint(
    file: str,
    name: str,
    table: Document,
    around: Around,
    policy: RetryPolicy,
    delivery: Delivery,
    mistakes: list[str],
) -> tuple[Endpoint, dict[str, Any], str] | None:
    place = _placed(file, "endpoint", name)
    if mistake := _secret_mistake(table):
        mistakes.append(place(mistake))
    made = read(EndpointTable, table, place, mistakes, around)
    if made is None:
        return None
    retry = _retry(policy, made.retry)
    if mistake := _retry_mistake(retry, made.retry):
        mistakes.append(place(f"retry.{mistake}"))
    endpoint = Endpoint(
        id=0,
        tenant=made.tenant,
        name=name,
        url=made.url,
        events=made.events,
        format=around.formats[made.format],
        signature=SCHEMES[made.signature],
        secrets=made.keys,
        retry=retry,
        timeout=delivery.timeout if made.timeout is None else made.timeout,
        max_in_flight=delivery.max_in_flight_per_endpoint if made.max_in_flight is None else made.max_in_flight,
        active=made.active,
        filter=MappingProxyType(made.filter),
        headers=tuple(made.headers.items()),
    )
    spec = {
        **{key: getattr(made, key) for key in ("tenant", "url", "description", "active", "signature", "format")},
        "name": name,
        "events": list(made.events),
        "headers": sorted(made.headers),
        "timeout": endpoint.timeout,
        "max_in_flight": endpoint.max_in_flight,
        "retry": {**asdict(retry), "schedule": list(retry.schedule)},
        "filter": {key: list(values) for key, values in made.filter.items()},
    }
    return endpoint, spec, _fingerprint(table, made.keys)


def _secret_mistake(table: Document) -> str | None:
    given = [key for key in SECRETS if key in table]
    if table.get("signature") == "none":
        return f'{" and ".join(given)}: signature = "none" uses no secret; remove one or the other' if given else None
    if not given:
        return f'secret: is required, as {", ".join(SECRETS[:-1])} or {SECRETS[-1]}, unless signature = "none"'
    return f"{' and '.join(given)}: give only one of them" if len(given) > 1 else None


def _retry(base: RetryPolicy, table: Retry) -> RetryPolicy:
    """The policy with what the table says itself; an exponential key ends a schedule that was inherited."""
    said = {key: getattr(table, key) for key in table.model_fields_set}
    if "schedule" not in said and not said.keys().isdisjoint(_EXPONENTIAL):
        said["schedule"] = ()
    return replace(base, **said)


def _retry_mistake(policy: RetryPolicy, table: Retry) -> str | None:
    """What the keys of a retry table say against each other, beginning with a key."""
    if table.schedule and (extra := table.model_fields_set.intersection(_EXPONENTIAL)):
        return f"schedule: replaces {' and '.join(sorted(extra))}; give only one of them"
    if not policy.schedule and policy.first > policy.max_interval:
        return "first: is longer than max_interval; shorten it or raise max_interval"
    return None


def _doubles(endpoints: Iterable[tuple[Endpoint, str]]) -> Iterator[str]:
    files: dict[tuple[str, str], str] = {}
    for endpoint, file in endpoints:
        if (other := files.setdefault((endpoint.tenant, endpoint.name), file)) != file:
            where = f" of tenant {quoted(endpoint.tenant)}" if endpoint.tenant else ""
            yield f"{file}: [endpoint.{endpoint.name}]{where} is also in {other}; rename one of them"


def _placed(file: str, kind: str, name: str) -> Callable[[str], str]:
    header = f'[{kind}."{name}"]' if "." in name else f"[{kind}.{name}]"
    return lambda key: f"{file}: {header} {key}".rstrip()


def _beside(read_secret: ReadSecret, file: str) -> Callable[[str], str]:
    return lambda path: read_secret(path, file)


def _hash(sections: Mapping[str, Any], documents: Iterable[tuple[str, Document]], specs: Iterable[Any]) -> str:
    """16 hex digits over what decides about deliveries; secrets, header values and templates as the files have them."""
    written = {name: sections[name].model_dump(mode="json") for name in ("daemon", "delivery", "retry", "egress")}
    formats = {name: table for _, document in documents for name, table in document.get("formats", {}).items()}
    canonical = json.dumps([written, formats, list(specs)], sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _fingerprint(table: Document, keys: Keys) -> str:
    """A hash of what an endpoint's spec leaves out."""
    left_out = [table.get("headers"), [(key.kind, key.raw.hex()) for key in keys]]
    return hashlib.sha256(json.dumps(left_out, sort_keys=True).encode()).hexdigest()
