"""The values that travel through the daemon. docs/architecture.md has the words.

Times are seconds since the epoch on the database's clock unless a name says otherwise; durations are seconds.
What is made once per delivery is a NamedTuple: it is frozen, and three times cheaper to make than a frozen dataclass.
"""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Literal, NamedTuple

Network = IPv4Network | IPv6Network

METADATA_KEPT = 1_024  # bytes


class Event(NamedTuple):
    """A row of `webhookd.outbox`; the fields stand in the order of the query `heads`."""

    id: int
    event_id: str
    created_at: datetime
    type: str
    tenant: str
    ordering_key: str | None
    metadata: bytes | None  # JSON text, as the application wrote it
    occurred_at: datetime | None
    size: int  # bytes of the payload's text
    unread: int = 0  # bytes of the metadata where it is not at hand: it comes with the payload
    payload: bytes | None = None  # its text, where it is small and came along; else it is fetched when it is wanted

    def lean(self) -> "Event":
        """The same, to be kept in memory: without metadata that takes more room than all the rest."""
        if self.metadata is None or len(self.metadata) <= METADATA_KEPT:
            return self
        return self._replace(metadata=None, unread=len(self.metadata), payload=None)


class Body(NamedTuple):
    """What a format makes of an event: the exact bytes that are signed and sent, and their headers."""

    content_type: str
    content: bytes
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Key:
    """A signing secret. `kind` is the prefix of the signatures it makes: `v1` (HMAC-SHA256) or `v1a` (ed25519).

    `text` is a secret of another scheme, whose bytes are its characters.
    """

    kind: Literal["v1", "v1a", "text"]
    raw: bytes = field(repr=False)
    until: float = float("inf")  # from then on it signs nothing; by this machine's clock, as timestamps are


# (event, payload text, CloudEvents source) -> body. The same arguments give the same bytes, on a retry too.
Format = Callable[[Event, bytes, str], Body]
# (keys, the other headers, timestamp in whole seconds, content) -> headers that prove the request
Scheme = Callable[[tuple[Key, ...], Mapping[str, str], int, bytes], tuple[tuple[str, str], ...]]
# (event, payload text) -> value of a header
HeaderValue = Callable[[Event, bytes], str]


@dataclass(frozen=True, slots=True)
class Grant:
    """How a token for a receiver is got: OAuth 2 client credentials (RFC 6749 4.4)."""

    token_url: str = field(repr=False)
    client_id: str
    client_secret: str = field(repr=False)
    scope: str = ""
    audience: str = ""
    in_body: bool = False  # the id and the secret stand in the body, not in a header (RFC 6749 2.3.1)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed delivery is tried again, and when it is given up. `schedule` replaces the exponential part."""

    first: float = 5.0
    factor: float = 3.0
    max_interval: float = 6 * 3600.0
    jitter: float = 0.2
    give_up_after: float = 3 * 86400.0
    schedule: tuple[float, ...] = ()


# Whether an endpoint gets one event after the other: all of them, or those of each ordering key.
Ordered = Literal[False, True, "key"]


class DisableAfter(NamedTuple):
    """When an endpoint is owed nothing more: so many attempts in a row have failed, for so many seconds."""

    failures: int
    seconds: float


Scalar = str | int | float | bool


class Condition(NamedTuple):
    """What a path of a payload has to lead to: one of these values, something or nothing, within these bounds."""

    path: str
    among: tuple[Scalar, ...] | None = None
    exists: bool | None = None
    bounds: tuple[tuple[str, Scalar], ...] = ()  # gt, gte, lt or lte, and of what


def label(tenant: str, name: str) -> str:
    """`tenant/name`, as people see an endpoint; the name alone where there is no tenant."""
    return f"{tenant}/{name}" if tenant else name


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A subscriber: where events go, which ones, how they are signed, retried and limited."""

    id: int  # 0 until the store knows it
    tenant: str  # exactly this tenant's events; "*" for every tenant's
    name: str
    url: str = field(repr=False)  # may carry a token in its query
    events: tuple[str, ...]
    format: Format
    signature: Scheme
    secrets: tuple[Key, ...] = field(repr=False)
    retry: RetryPolicy
    timeout: float
    max_in_flight: int
    rate_limit: float = 0.0  # requests per second; 0 for no limit
    active: bool = True
    filter: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # metadata key -> values that pass
    data_filter: tuple[Condition, ...] = ()  # what the payload has to say
    headers: tuple[tuple[str, str | HeaderValue], ...] = field(default=(), repr=False)
    tls: ssl.SSLContext | None = None  # None for the usual one
    grant: Grant | None = None  # its requests carry a token
    disable_after: DisableAfter | None = None
    disable_on_request: bool = False  # its receiver may say so
    ordered: Ordered = False
    sealed_by: frozenset[str] = frozenset()  # names of the keys that open it; of those alone that the API has made
    polled: bool = False  # nothing is sent to it: who it is for fetches its events
    holds: bool = False  # where its order would go on without what its time has run out for, it waits for somebody

    @property
    def label(self) -> str:
        """How people see it."""
        return label(self.tenant, self.name)


@dataclass(slots=True, eq=False)
class Batch:
    """Up to 500 events that this daemon is handling. The fence of its end is (id, nonce, owner, claims).

    `open` counts what keeps it from being done: a delivery that is not yet recorded, and the reader while it hands
    them out. It and `recorded` are all that changes here; the reader counts up, the recorder down.
    """

    id: int
    nonce: int
    cut_at: float
    event_ids: list[int]
    lo: datetime
    hi: datetime
    claims: int
    parked: int  # the version of the parking when it was cut or adopted
    config: int = 0  # the same of the endpoints
    open: int = 1
    recorded: bool = False  # its end is in the database
    left_by: int | None = None  # the daemon it was adopted of; None when it was given back, or is new


@dataclass(slots=True, eq=False)
class Window:
    """What a cursor has handed out and not yet moved over. The fence of that is (endpoint, from_batch, owner, epoch).

    The cursor goes to (batch, pos) when all of it is settled, and all of the window before. `open` counts what keeps
    it from that, as with a batch; `next` is the window behind it.
    """

    endpoint_id: int
    from_batch: int
    epoch: int
    batch: int
    pos: int
    open: int = 1
    next: "Window | None" = None
    recorded: bool = False


@dataclass(slots=True, eq=False)
class Delivery:
    """One event for one endpoint, while it is in memory.

    `batch` is what cannot end before it, a batch or a cursor's window, or None once a backlog row holds it instead.
    """

    event: Event
    endpoint: Endpoint
    batch: Batch | Window | None
    attempts: int  # made so far; the fence of its backlog row
    clock_from: float  # the three days count from here
    since: float  # monotonic: when it was offered
    start_by: float  # monotonic: a claim from the backlog that has not started by then is forgotten
    asked: int = 0  # of the attempts, those whose answer only asked for less
    deaths: int = 0  # of daemons that had it in hand, since its last result
    trigger: str | None = None  # what it is attempted for, where that is not the schedule: resend, test or replay
    replay: int = 0  # the number of the one that it is of
    lent: bool = False  # its row is held, and stays so until it is written what became of it
    gone: bool = False  # it has left memory while its payload was on its way

    @property
    def key(self) -> str | None:
        """What it comes after and before others of: its ordering key, "" where one order is for all, or None."""
        if not self.endpoint.ordered:
            return None
        return "" if self.endpoint.ordered is True else self.event.ordering_key

    @property
    def holds(self) -> bool:
        """True when those behind it wait for somebody once its time is over."""
        return self.endpoint.holds and self.key is not None

    @property
    def attempt(self) -> int:
        """The number of the next attempt, from 1."""
        return self.attempts + 1

    @property
    def step(self) -> int:
        """Where the next attempt stands in the schedule, from 1."""
        return self.attempts - self.asked + 1

    def follow(self, endpoint: Endpoint) -> None:
        """Go to this endpoint, which it was offered for before it changed; its attempt still ends within its lease."""
        self.start_by -= endpoint.timeout - self.endpoint.timeout
        self.endpoint = endpoint


@dataclass(frozen=True, slots=True)
class Proxy:
    """The operator's way out: an HTTP proxy that opens tunnels with CONNECT (RFC 9110 9.3.6)."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)  # the value of Proxy-Authorization


@dataclass(frozen=True, slots=True)
class Egress:
    """What requests may reach beyond https on public addresses, and by which way."""

    allow_http: bool = False
    allow_networks: tuple[Network, ...] = ()
    proxy: Proxy | None = None


class Attempt(NamedTuple):
    """A row of `webhookd.attempt`: what one request met."""

    at: float
    number: int
    ok: bool
    code: int | None
    ms: int
    error: str | None
    response: bytes | None


class Delivered(NamedTuple):
    """The receiver has it."""


class Retry(NamedTuple):
    """The attempt failed, or its answer `asked` for less; the next one is due `delay` seconds from now."""

    delay: float
    asked: bool = False  # it uses up no step of the schedule


class Postponed(NamedTuple):
    """No attempt was made; the delivery is owed again `delay` seconds from now. `why`: the code of what went wrong."""

    delay: float
    why: str | None = None


class Held(NamedTuple):
    """No attempt was made; the delivery waits behind another that its endpoint is to get before."""


class Ended(NamedTuple):
    """The delivery will not be tried again."""

    state: Literal["exhausted", "rejected"]
    reason: str


class Unwanted(NamedTuple):
    """The endpoint is not owed it, as its payload tells: nothing is written where nothing was tried."""


UNWANTED: Final = Unwanted()
Outcome = Delivered | Unwanted | Retry | Postponed | Held | Ended


class Result(NamedTuple):
    """What is written down about a delivery. `attempt` is None when no request was made."""

    delivery: Delivery
    attempt: Attempt | None
    outcome: Outcome
