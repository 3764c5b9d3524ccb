"""The tables of the configuration files, one frozen model each: what may stand in them, and within which bounds.

A validator raises ValueError with the rest of the sentence that begins with the key ("timeout: …"). No such text
holds a secret, the query of a URL or the value of a header.
"""

import ipaddress
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    ValidationInfo,
)

from webhookd.formats import FORMATS, compile_header_value, compile_template
from webhookd.mistakes import egress_mistake
from webhookd.model import Format, HeaderValue, Key, RetryPolicy
from webhookd.signing import SCHEMES, parse_secret
from webhookd.units import DAY, KIB, MIB, MILLISECOND, MINUTE, duration, quoted, size

SECRETS: Final = ("secret", "secrets", "secret_file", "secret_env")  # the ways to name an endpoint's secret

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_EVENTS = re.compile(r"\*|(?:[^\s.*\x00-\x1f\x7f]+\.)*(?:[^\s.*\x00-\x1f\x7f]+|(?<=\.)\*)")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_OURS = re.compile(
    r"host|content-length|transfer-encoding|connection|expect|te|upgrade|trailer|cookie|content-encoding|webhook-.*",
    re.I,
)
_DEFAULTS: Final = RetryPolicy()

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Around:
    """What a table is read against: what other tables allow, and where secrets come from."""

    allow_http: bool
    allow_networks: tuple[Network, ...]
    formats: Mapping[str, Format]
    environ: Mapping[str, str]
    read_secret: Callable[[str], str]  # path, as written -> text; ValueError says why not


def name_mistake(name: str) -> str | None:
    """What is wrong with the name of an endpoint, a format or an environment, or None."""
    if _NAME.fullmatch(name):
        return None
    return f"{quoted(name)} is no name; use 1 to 64 of a-z, 0-9, '_', '.' and '-', the first a letter or a digit"


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
    if _CONTROL.search(value):
        raise ValueError("holds a control character; write plain text")
    return value


def _storable(value: str) -> str:
    if "\x00" in value:
        raise ValueError("holds a NUL character, which Postgres cannot keep; remove it")
    return value


def _tenant(value: str) -> str:
    if len(value) > 255 or _CONTROL.search(value):
        raise ValueError("is no tenant; write at most 255 characters without control characters")
    return value


def _source(value: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", value):
        raise ValueError(f'{quoted(value)} is no CloudEvents source; write a URI such as "https://example.com/shop"')
    return value


def _dsn(value: object) -> object:
    if isinstance(value, str) and value and not value.startswith(("postgresql://", "postgres://")):
        raise ValueError('must begin with "postgresql://"')
    return value


def _network(value: object) -> Network:
    try:
        return ipaddress.ip_network(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError(f'{quoted(value)} is no network; write an address range such as "10.20.0.0/16"') from None


def _pattern(value: str) -> str:
    if len(value) > 255 or not _EVENTS.fullmatch(value):
        raise ValueError(f'{quoted(value)} is no event pattern; write "order.created", "order.*" or "*"')
    return value


def _url(value: str, info: ValidationInfo) -> str:
    around = _around(info)
    if mistake := egress_mistake(value, around.allow_http, around.allow_networks):
        raise ValueError(mistake)
    return value


def _around(info: ValidationInfo) -> Around:
    return cast(Around, info.context)


def _secret(value: object) -> Key:
    if not isinstance(value, str):
        raise ValueError("wants a text in quotes")
    return parse_secret(value)


def _one_secret(value: object) -> tuple[Key, ...]:
    return (_secret(value),)


def _file_secret(value: object, info: ValidationInfo) -> tuple[Key, ...]:
    if not isinstance(value, str) or not value:
        raise ValueError("wants the path of a file")
    around = _around(info)
    return (parse_secret(around.read_secret(value)),)


def _environ_secret(value: object, info: ValidationInfo) -> tuple[Key, ...]:
    around = _around(info)
    if not isinstance(value, str) or not (found := around.environ.get(value)):
        # The value is not shown: it may be a secret that was meant for another key.
        raise ValueError("the environment variable it names is not set")
    return (parse_secret(found.strip()),)


def _one_of(known: Mapping[str, object], value: str, what: str) -> str:
    if value not in known:
        raise ValueError(f"{quoted(value)} is no {what}; write {' or '.join(quoted(k) for k in sorted(known))}")
    return value


def _scheme(value: str) -> str:
    return _one_of(SCHEMES, value, "signature")


def _format(value: str, info: ValidationInfo) -> str:
    around = _around(info)
    return _one_of({**FORMATS, **around.formats}, value, "format")


def _header_name(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError("is no header name; use letters, digits and '-'")
    if _OURS.fullmatch(value):
        raise ValueError("is set by webhookd itself or changes how the body is read; remove it")
    return value


def _header_value(value: object) -> str | HeaderValue:
    if not isinstance(value, str):
        raise ValueError("wants a text in quotes")
    if _CONTROL.search(value):
        raise ValueError("holds a control character; write one line of plain text")
    return compile_header_value(value)


def _distinct(headers: dict[str, T]) -> dict[str, T]:
    seen: dict[str, str] = {}
    for name in headers:
        if (other := seen.setdefault(name.lower(), name)) != name:
            raise ValueError(f"{quoted(other)} and {quoted(name)} are one header; give it once")
    return headers


def _passing(value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("wants at least one value, as nothing would pass")
    return tuple(_compared(each) for each in values)


def _compared(value: object) -> str:
    if isinstance(value, str):
        return _storable(value)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    raise ValueError("wants a text, a number, true or false, or a list of them")


Name = Annotated[str, AfterValidator(_name)]
Many = Annotated[tuple[T, ...], BeforeValidator(_listed)]
Dsn = Annotated[SecretStr, BeforeValidator(_dsn)]
Timeout = Annotated[float, _between(MILLISECOND, 5 * MINUTE, '"1ms" to "5m"', duration)]
Delay = Annotated[float, _between(MILLISECOND, 30 * DAY, '"1ms" to "30d"', duration)]
Payload = Annotated[int, _between(1, 32 * MIB, '1 to "32MiB"', size)]
Slots = Annotated[int, Field(ge=1, le=10_000)]
Keys = tuple[Key, ...]


class Shape(BaseModel):
    """A table: nothing unknown in it, and no text taken for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Daemon(Shape):
    """`[daemon]`"""

    environment: Name = "production"


class Database(Shape):
    """`[database]`; empty values leave the choice to PGHOST, PGUSER and the others of that family."""

    dsn: Dsn = SecretStr("")
    dsn_file: str = ""
    direct_dsn: Dsn = SecretStr("")


class Delivery(Shape):
    """`[delivery]`; seconds and bytes."""

    timeout: Timeout = 20.0
    max_in_flight: Slots = 500
    max_in_flight_per_endpoint: Slots = 10
    max_payload: Payload = 1024 * KIB
    source: Annotated[str, AfterValidator(_source)] = "webhookd"
    response_body: Literal["failures", "none"] = "failures"


class Retry(Shape):
    """`[retry]`, and the `retry` of an endpoint, where only what is written counts."""

    first: Delay = _DEFAULTS.first
    factor: Annotated[float, Field(ge=1, le=100)] = _DEFAULTS.factor
    max_interval: Delay = _DEFAULTS.max_interval
    jitter: Annotated[float, Field(ge=0, le=1)] = _DEFAULTS.jitter
    give_up_after: Delay = _DEFAULTS.give_up_after
    schedule: Annotated[Many[Delay], Field(max_length=100)] = ()


class Egress(Shape):
    """`[egress]`: what requests may reach beyond https on public addresses."""

    allow_http: bool = False
    allow_networks: Many[Annotated[Network, PlainValidator(_network)]] = ()


class Log(Shape):
    """`[log]`"""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Endpoints(Shape):
    """`[endpoints]`: where the files of endpoints are, seen from the main file."""

    directory: Annotated[str, Field(min_length=1), AfterValidator(_text)] = "endpoints.d"


class FormatTable(Shape):
    """`[formats.NAME]`"""

    body: Annotated[Format, PlainValidator(compile_template)]


class EndpointTable(Shape):
    """`[endpoint.NAME]`, read against an `Around`."""

    url: Annotated[str, AfterValidator(_url)] = Field(repr=False)
    events: Annotated[Many[Annotated[str, AfterValidator(_pattern)]], Field(min_length=1)]
    tenant: Annotated[str, AfterValidator(_tenant)] = ""
    description: Annotated[str, Field(max_length=1000), AfterValidator(_storable)] = ""
    active: bool = True
    secret: Annotated[Keys, PlainValidator(_one_secret)] = Field(default=(), repr=False)
    secrets: Annotated[Many[Annotated[Key, PlainValidator(_secret)]], Field(min_length=1, max_length=10)] = Field(
        default=(), repr=False
    )
    secret_file: Annotated[Keys, PlainValidator(_file_secret)] = Field(default=(), repr=False)
    secret_env: Annotated[Keys, PlainValidator(_environ_secret)] = Field(default=(), repr=False)
    signature: Annotated[str, AfterValidator(_scheme)] = "standard"
    format: Annotated[str, AfterValidator(_format)] = "standard"
    headers: Annotated[
        dict[Annotated[str, AfterValidator(_header_name)], Annotated[str | HeaderValue, PlainValidator(_header_value)]],
        AfterValidator(_distinct),
    ] = Field(default={}, repr=False)
    timeout: Timeout | None = None
    max_in_flight: Slots | None = None
    retry: Retry = Retry()
    filter: dict[Annotated[str, AfterValidator(_storable)], Annotated[tuple[str, ...], PlainValidator(_passing)]] = {}

    @property
    def keys(self) -> Keys:
        """The secrets, whichever way they were given."""
        return self.secret or self.secrets or self.secret_file or self.secret_env
