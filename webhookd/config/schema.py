"""The tables of the configuration files: one frozen model each, whose docstrings are the documentation of its keys."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from webhookd.config.checks import Delay, Dsn, Kept, Many, Name, Payload, Plain, ProxyUrl, Range, Slots, Source, Timeout
from webhookd.config.secrets import (
    Authorization,
    SealKeys,
    TokensFile,
)
from webhookd.config.served import BasePath, Collector, HostName, Listen, Origin, Watched
from webhookd.model import RetryPolicy
from webhookd.units import DAY, KIB

_DEFAULTS: Final = RetryPolicy()


class Shape(BaseModel):
    """A table: nothing unknown in it, and no text taken for a number."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Daemon(Shape):
    """What this daemon belongs to, and how it learns of changes."""

    environment: Name = "production"
    """The name of this deployment, as part of the configuration's hash; give staging one of its own."""
    watch: bool | None = None
    """Take up changed files without a signal; by default true, but false where NOTIFY_SOCKET is set, as by systemd."""


class Database(Shape):
    """Where Postgres is; what is not given comes from PGHOST, PGUSER and the others of that family."""

    dsn: Dsn = SecretStr("")
    """The database, as "postgresql://…". The variable WEBHOOKD_DSN is the same."""
    dsn_file: str = ""
    """Instead of dsn: a file that holds it, read anew at each connect, for short-lived passwords."""
    direct_dsn: Dsn = SecretStr("")
    """For LISTEN, where dsn goes through a pooler."""


class DisableAfter(Shape):
    """How long an endpoint may fail until it is owed nothing more, and `webhookd enable` ends that. Both must be so."""

    failures: Annotated[int, Field(ge=0, le=100_000)] = 0
    """So many attempts in a row have failed; a 429 is no failure. 0 for never."""
    for_: Delay = Field(default=3.0 * DAY, alias="for")
    """The first of them is so long ago."""


class Delivery(Shape):
    """What one request may take, and how many there may be."""

    timeout: Timeout = 20.0
    """The time for one request, from the lookup of the name to the headers of the answer."""
    max_in_flight: Slots = 500
    """Requests at one time. Those that wait for over a second are counted apart: at most four times as many."""
    max_in_flight_per_endpoint: Slots = 10
    """Requests at one time to one endpoint, from all daemons together, unless it says otherwise."""
    max_in_flight_per_host: Slots = 250
    """Requests at one time to all endpoints at one host and port together; never less than one of them may have."""
    max_payload: Payload = 1024 * KIB
    """An event with a larger payload is rejected, not sent."""
    source: Source = "webhookd"
    """The source attribute of CloudEvents; best a URI of yours."""
    response_body: Literal["failures", "none"] = "failures"
    """Keep the first 1 KiB of failed answers, or nothing of any answer."""
    require_tenant: bool = False
    """Reject events without a tenant."""
    disable_after: DisableAfter = DisableAfter()
    """Disable any endpoint that fails for long: { failures = 100, for = "3d" }; without it they are only probed."""


class Retry(Shape):
    """When a failed delivery is tried again: after first, then factor times longer each time, until give_up_after."""

    first: Delay = _DEFAULTS.first
    """The delay after the first attempt."""
    factor: Annotated[float, Field(ge=1, le=100)] = _DEFAULTS.factor
    """How much longer each next delay is."""
    max_interval: Delay = _DEFAULTS.max_interval
    """The longest delay."""
    jitter: Annotated[float, Field(ge=0, le=1)] = _DEFAULTS.jitter
    """How much earlier or later an attempt may be, as a part of its delay."""
    give_up_after: Delay = _DEFAULTS.give_up_after
    """The last attempt is made at this age of a delivery."""
    schedule: Annotated[Many[Delay], Field(max_length=100)] = ()
    """The delays themselves, instead of first, factor and max_interval; the last one repeats."""


class EgressTable(Shape):
    """What requests may reach beyond https on public addresses."""

    allow_http: bool = False
    """Allow URLs that begin with http:// too."""
    allow_networks: Many[Range] = ()
    """Allow these private address ranges, such as "10.20.0.0/16"."""
    proxy: ProxyUrl = ""
    """Send everything through this HTTP proxy, with CONNECT: "http://HOST:PORT". It then looks up the names."""
    proxy_authorization: Authorization = Field(default="", repr=False, exclude=True)  # a hash could be guessed
    """Who we are for it: "Basic …", or { file = "proxy.password", user = "webhookd" }, also with env or credential."""


class Retention(Shape):
    """How long webhookd keeps what it has done; what is still to be delivered stays as long as it takes."""

    events: Kept = 7.0 * DAY
    """Events, for replays and questions; at least a day longer than the longest give_up_after."""
    attempts: Kept = 7.0 * DAY
    """Attempts; at least a day longer than the longest give_up_after, since they tell what need not be sent again."""
    manage_partitions: bool = True
    """Make daily partitions and drop old ones; when false, run `webhookd maintain` each day, or webhookd.maintain()."""


class Encryption(Shape):
    """What seals the secrets of endpoints that tenants make by the API: those are in the database, keys are not."""

    keys: Annotated[SealKeys, Field(max_length=10)] = Field(default=(), repr=False)
    """The first seals, the others open what they have sealed: [{ id = "2026", credential = "webhookd.key" }]."""


class Api(Shape):
    """The HTTP API, which docs/api.md describes. The daemon serves it where it is told to listen."""

    listen: Listen = ""
    """Where: "127.0.0.1:8484", "unix:/run/webhookd/api.sock", or "systemd" for the socket that it hands over."""
    base_path: BasePath = ""
    """What a proxy has put before the path, such as "/webhooks"."""
    hosts: Annotated[Many[HostName], Field(max_length=100)] = ()
    """The names that it is reached by; a request for another is answered 421. By default any."""
    cors_origins: Annotated[Many[Origin], Field(max_length=100)] = ()
    """Pages that may use it from a browser, such as ["https://app.example.com"]."""
    allow_http: bool = False
    """Allow http:// to endpoints that tenants make; what [egress] allows is not for them."""
    allow_networks: Many[Range] = ()
    """Private address ranges that these endpoints may be in."""
    through_proxy: bool = False
    """Send to them through the proxy of [egress], which has to refuse private addresses itself; else it has none."""
    endpoints_per_tenant: Annotated[int, Field(ge=0, le=1_000_000)] = 1_000
    """How many a tenant may have."""
    strict_event_types: bool = False
    """Refuse endpoints for event types that nobody has registered, by the API or under [event_types]."""
    tokens_file: TokensFile = Field(default_factory=dict, repr=False, exclude=True)
    """Tokens beside those of `webhookd token new`: a file with a role and a token on each line."""

    @property
    def tokens(self) -> Mapping[bytes, str]:
        """Hash -> role."""
        return self.tokens_file


class Metrics(Shape):
    """What monitoring asks for, where nobody else does: /metrics, /healthz and /readyz. docs/monitoring.md has more."""

    listen: Watched = ""
    """Where: "127.0.0.1:9464" or "unix:/run/webhookd/metrics.sock". Whoever reaches it may read all of it."""
    endpoints: bool = True
    """Six lines of each endpoint, with tenant and name; false where there are many thousands."""


class Traces(Shape):
    """A span of OpenTelemetry for each attempt; it wants the extra `webhookd[otel]`. docs/monitoring.md has more."""

    endpoint: Collector = ""
    """Where they go, by OTLP over HTTP: "http://127.0.0.1:4318/v1/traces". OTEL_TRACES_SAMPLER and others count."""


class Log(Shape):
    """What the daemon says on its standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important line that is written."""
    format: Literal["auto", "json", "console"] = "auto"
    """JSON for machines, or columns for people; auto: columns on a terminal, else JSON."""


class Endpoints(Shape):
    """Where the files of endpoints are."""

    directory: Annotated[Plain, Field(min_length=1)] = "endpoints.d"
    """Each *.toml file in it has [endpoint.NAME] tables; a relative path starts at the folder of the main file."""


SECTIONS: Final[Mapping[str, type[Shape]]] = MappingProxyType(
    {
        "daemon": Daemon,
        "database": Database,
        "delivery": Delivery,
        "retry": Retry,
        "egress": EgressTable,
        "retention": Retention,
        "encryption": Encryption,
        "api": Api,
        "metrics": Metrics,
        "traces": Traces,
        "log": Log,
        "endpoints": Endpoints,
    }
)
