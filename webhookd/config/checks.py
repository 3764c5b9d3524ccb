"""What the values of the configuration are checked for, and how each kind of value is written.

A validator raises ValueError with the rest of the sentence that begins with the key ("timeout: …"). No such text
holds a secret, the query of a URL or the value of a header.
"""

import ipaddress
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from typing import Annotated, Any, Final, TypeVar, cast

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, SecretStr, ValidationInfo

from webhookd.config.mistakes import egress_mistake
from webhookd.egress.guard import url_mistake
from webhookd.message.formats import FORMATS, compile_template
from webhookd.message.own_signature import headers_in
from webhookd.message.signing import SCHEMES, parse_secret
from webhookd.model import Condition, Egress, Format, Key, Network
from webhookd.policy.payload_filter import compiled
from webhookd.store import dsn
from webhookd.units import DAY, MIB, MILLISECOND, MINUTE, duration, quoted, rate, size, written_duration, written_size

NAME: Final = "[a-z0-9][a-z0-9_.-]{0,63}"  # of an endpoint, a format or an environment

_NAME = re.compile(NAME)
_EVENTS = re.compile(r"\*|(?:[^\s.*\x00-\x1f\x7f]+\.)*(?:[^\s.*\x00-\x1f\x7f]+|(?<=\.)\*)")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_PROXY = re.compile(r"http://[^/?]+:[0-9]+/?")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_OURS = re.compile(
    r"host|content-length|transfer-encoding|connection|expect|te|upgrade|trailer|cookie|content-encoding|"
    r"accept-encoding|webhook-.*",
    re.I,
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)  # the schemas cannot be hashed
class Kind:
    """How a value is written in a file: in a word, as JSON Schema, and made of the value again."""

    word: str
    schema: Mapping[str, Any]
    written: Callable[[Any], object] = str

    def __get_pydantic_json_schema__(self, core_schema: object, handler: object) -> dict[str, Any]:
        return dict(self.schema)


@dataclass(frozen=True, slots=True)
class Around:
    """What a table is read against: where secrets come from, and what other tables allow."""

    environ: Mapping[str, str]
    read_secret: Callable[[str], str]  # path, as written -> text; ValueError says why not
    egress: Egress
    formats: Mapping[str, Format] = field(default_factory=dict)
    parse_secret: Callable[[str], Key] = parse_secret  # as the endpoint's signature wants it


def name_mistake(name: str) -> str | None:
    """What is wrong with the name of an endpoint, a format or an environment, or None."""
    if _NAME.fullmatch(name):
        return None
    return f"{quoted(name)} is no name; use 1 to 64 of a-z, 0-9, '_', '.' and '-', the first a letter or a digit"


def type_mistake(name: str) -> str | None:
    """What is wrong with the name of an event type, or None."""
    if "*" not in name and len(name) <= 255 and _EVENTS.fullmatch(name):
        return None
    return f'{quoted(name)} is no event type; write words with dots between them, such as "order.created"'


def _between(low: float, high: float, bounds: str, parse: Callable[[object], Any]) -> BeforeValidator:
    def check(value: object) -> Any:
        parsed = parse(value)
        if not low <= parsed <= high:
            raise ValueError(f"{quoted(value)} is out of bounds; write {bounds}")
        return parsed

    return BeforeValidator(check)


def _listed(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _name(value: str) -> str:
    if mistake := name_mistake(value):
        raise ValueError(mistake)
    return value


def _text(value: str) -> str:
    if CONTROL.search(value):
        raise ValueError("holds a control character; write plain text")
    return value


def _storable(value: str) -> str:
    if "\x00" in value:
        raise ValueError("holds a NUL character, which Postgres cannot keep; remove it")
    return value


def _tenant(value: str) -> str:
    if len(value) > 255 or CONTROL.search(value):
        raise ValueError("is no tenant; write at most 255 characters without control characters")
    return value


def _source(value: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", value):
        raise ValueError(f'{quoted(value)} is no CloudEvents source; write a URI such as "https://example.com/shop"')
    return value


def _dsn(value: object) -> object:
    if isinstance(value, str) and value:
        if not value.strip():
            raise ValueError("is empty; write postgresql://… or leave it out")
        dsn.parsed(value)
    return value


def _network(value: object) -> Network:
    try:
        return ipaddress.ip_network(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError(f'{quoted(value)} is no network; write an address range such as "10.20.0.0/16"') from None


def _proxy(value: str) -> str:
    if value and (not _PROXY.fullmatch(value) or url_mistake(value, allow_http=True)):
        raise ValueError(
            'wants "http://HOST:PORT" and nothing else; a user and a password belong into proxy_authorization'
        )
    return value


def _pattern(value: str) -> str:
    if len(value) > 255 or not _EVENTS.fullmatch(value):
        raise ValueError(f'{quoted(value)} is no event pattern; write "order.created", "order.*" or "*"')
    return value


def _url(value: str, info: ValidationInfo) -> str:
    around = around_of(info)
    if mistake := egress_mistake(value, around.egress):
        raise ValueError(mistake)
    return value


def around_of(info: ValidationInfo) -> Around:
    return cast(Around, info.context)


def _example(value: object) -> object:
    """The value as JSON has it: dates and times become texts."""
    if isinstance(value, dict):
        return {key: _example(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_example(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("holds inf or nan, which JSON does not have")
    return value.isoformat() if isinstance(value, (date, time)) else value


def _header_or_none(value: str) -> str:
    return value and _header_name(value)


def _one_of(known: Mapping[str, object], value: str, what: str) -> str:
    if value not in known:
        raise ValueError(f"{quoted(value)} is no {what}; write {' or '.join(quoted(k) for k in sorted(known))}")
    return value


def _words(known: Mapping[str, object]) -> str:
    return ", ".join(quoted(word) for word in known)


def _scheme(value: str) -> str:
    return _one_of(_SIGNATURES, value, "signature")


def _format(value: str, info: ValidationInfo) -> str:
    around = around_of(info)
    return _one_of({**FORMATS, **around.formats}, value, "format")


def _header_name(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError("is no header name; use letters, digits and '-'")
    if _OURS.fullmatch(value):
        raise ValueError("is set by webhookd itself or changes how the body is read; remove it")
    return value


def _signed(value: str) -> str:
    headers_in(_text(value))
    return value


def _passing(value: object) -> tuple[str, ...] | tuple[Condition, ...]:
    if isinstance(value, _OfPayloads):
        return compiled(cast(dict[str, object], _example(value)))
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("wants at least one value, as nothing would pass")
    return tuple(_compared(each) for each in values)


class _OfPayloads(dict[str, Any]):
    """The table `data` of a filter."""


def _filter(value: object) -> object:
    if isinstance(value, dict) and isinstance(value.get("data"), dict):
        return {**value, "data": _OfPayloads(value["data"])}
    return value


def _compared(value: object) -> str:
    if isinstance(value, str):
        return _storable(value)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    raise ValueError("wants a text, a number, true or false, or a list of them")


_SIGNATURES: Final = {**SCHEMES, "hmac": None}
_WORDS: Final = {"type": "string", "pattern": f"^{NAME}$"}


def _duration(low: float, high: float, bounds: str) -> tuple[BeforeValidator, Kind]:
    schema = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$"}
    return _between(low, high, bounds, duration), Kind(f"duration, {bounds}", schema, written_duration)


_timeout, _delay = (
    _duration(MILLISECOND, 5 * MINUTE, '"1ms" to "5m"'),
    _duration(MILLISECOND, 30 * DAY, '"1ms" to "30d"'),
)
_kept = _duration(DAY, 3650 * DAY, '"1d" to "3650d"')
_SIZE: Final = {
    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^[0-9]+(B|[kK]B|MB|GB|KiB|MiB|GiB)?$"}]
}
_SCALAR: Final = {"type": ["string", "number", "boolean"]}
_PASSING: Final = [_SCALAR, {"type": "array", "items": _SCALAR, "minItems": 1}]

Name = Annotated[str, AfterValidator(_name), Kind("name", _WORDS)]
Many = Annotated[tuple[T, ...], BeforeValidator(_listed)]
Dsn = Annotated[SecretStr, BeforeValidator(_dsn), Kind("text", {"type": "string"}, SecretStr.get_secret_value)]
Timeout = Annotated[float, *_timeout]
Delay = Annotated[float, *_delay]
Kept = Annotated[float, *_kept]
Payload = Annotated[int, _between(1, 32 * MIB, '1 to "32MiB"', size), Kind('size, 1 to "32MiB"', _SIZE, written_size)]
Slots = Annotated[int, Field(ge=1, le=10_000)]
Rate = Annotated[
    float,
    _between(1 / DAY, 10_000, '"1/d" to "10000/s"', rate),
    Kind('rate, "1/d" to "10000/s"', {"type": "string", "pattern": "^[0-9]+/[smhd]$"}),
]
Plain = Annotated[str, AfterValidator(_text)]
Storable = Annotated[str, AfterValidator(_storable)]
Tenant = Annotated[str, AfterValidator(_tenant), Kind("text", {"type": "string", "maxLength": 255})]
Source = Annotated[str, AfterValidator(_source)]
Range = Annotated[Network, PlainValidator(_network), Kind("address range", {"type": "string"})]
ProxyUrl = Annotated[str, AfterValidator(_proxy), Kind("URL", {"type": "string", "format": "uri"})]
Url = Annotated[str, AfterValidator(_url), Kind("URL", {"type": "string", "format": "uri", "maxLength": 2048})]
Pattern = Annotated[str, AfterValidator(_pattern)]
Signature = Annotated[str, AfterValidator(_scheme), Kind(_words(_SIGNATURES), {"enum": sorted(_SIGNATURES)})]
HeaderName = Annotated[str, AfterValidator(_header_name), Kind("header name", {"type": "string"})]
Signed = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_signed), Kind("text", {"type": "string"})]
HeaderOrNone = Annotated[str, AfterValidator(_header_or_none), Kind("header name", {"type": "string"})]
FormatName = Annotated[
    str,
    AfterValidator(_format),
    Kind(f"{_words(FORMATS)} or a name in [formats]", {"type": "string", "examples": sorted(FORMATS)}),
]
Template = Annotated[Format, PlainValidator(compile_template), Kind("any value", {})]
Filter = Annotated[
    dict[Storable, Annotated[Any, PlainValidator(_passing)]],
    BeforeValidator(_filter),
    Kind(
        "table of values, or of lists of values",
        {
            "type": "object",
            "properties": {"data": {"anyOf": [*_PASSING, {"type": "object"}]}},
            "additionalProperties": {"anyOf": _PASSING},
        },
    ),
]
Example = Annotated[Any, PlainValidator(_example), Kind("any value", {})]
