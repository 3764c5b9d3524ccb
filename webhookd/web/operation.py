"""What an operation is: a row of the table that router, checks and the OpenAPI document are made of."""

import hashlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

from pydantic import BaseModel

from webhookd.engine.polled.polls import Polls
from webhookd.message.formats import FORMATS
from webhookd.message.sealing import Keyring
from webhookd.model import Egress
from webhookd.policy.access import Caller, Right
from webhookd.store.tenants import Tenant
from webhookd.units import MIB

TENANT: Final = "app_id"  # the part of a path that says whose things it is about


NO_KEYS: Final = Keyring(())
EPOCH: Final = datetime.fromtimestamp(0, UTC)


class Settings(Protocol):
    """`[api]` of the configuration, as far as requests are concerned."""

    @property
    def base_path(self) -> str: ...
    @property
    def hosts(self) -> tuple[str, ...]: ...
    @property
    def cors_origins(self) -> tuple[str, ...]: ...
    @property
    def tokens(self) -> Mapping[bytes, str]: ...
    @property
    def endpoints_per_tenant(self) -> int: ...
    @property
    def strict_event_types(self) -> bool: ...


class Around(NamedTuple):
    """What the API has to know of the configuration."""

    settings: Settings
    max_payload: int = MIB  # bytes
    give_up_most: float = 3 * 86_400.0  # seconds that a delivery may be tried for
    keyring: Keyring = NO_KEYS
    egress: Egress | None = Egress()  # what endpoints may reach that are made here; None for nothing
    event_types: Mapping[str, str] = MappingProxyType({})  # those of files, with what is said of them
    since: datetime = EPOCH  # when that was read
    examples: Mapping[str, object] = MappingProxyType({})  # of their payloads, where they have one
    formats: Collection[str] = tuple(FORMATS)  # that an operator may give an endpoint
    polls: Polls | None = None  # None while the daemon has not joined, or leaves


class Answer(NamedTuple):
    """What comes back. `made` is the id of what was made or changed, of which the same answer can be made again."""

    status: int
    value: BaseModel | None = None
    made: str | None = None


@dataclass(slots=True)
class Call:
    """One request, once it is known what it wants, who asks, and that its parts are as they should be.

    `connection` is in a transaction where the operation writes. `tenant` is the one of the path, which its caller sees.
    """

    caller: Caller
    connection: Any
    path: Mapping[str, str]
    until: float  # the moment of the monotonic clock by which it has to be answered
    around: Around
    reached_at: Callable[[], str] = str  # the URL before all paths, as its caller sees it
    query: Any = None
    body: Any = None
    raw: bytes = field(default=b"", repr=False)
    tenant: Tenant | None = None

    @property
    def of(self) -> Tenant:
        """The tenant of the path, which an operation about a tenant's things always has."""
        if self.tenant is None:
            raise LookupError(TENANT)
        return self.tenant

    @property
    def digest(self) -> bytes:
        """SHA-256 of the body as it came, by which a request is known again."""
        return hashlib.sha256(self.raw).digest()


Handler = Callable[[Call], Awaitable[Answer]]
# (call, id of what was made, status) -> what was answered then, or as much of it as is still there
Again = Callable[[Call, str | None, int], Awaitable[Answer]]
# (call, what was done, which is committed) -> what is answered, after it was waited for
Afterwards = Callable[[Call, Answer], Awaitable[Answer]]
# (call, key of the request) -> the answer, or None when nothing was done
AtOnce = Callable[[Call, bytes | None], Awaitable[Answer | None]]


@dataclass(frozen=True, slots=True)
class Operation:
    """A method and a path, what they do, who may, what they take, and what they answer.

    `right` is None where nobody has to say who he is. `answers`: status -> what the body is, None for no body.
    `again` answers a request that has been answered before; only what is written wants it. `at_once` does nearly always
    what the handler does, with one statement, in which the request is noted. `afterwards` waits for what
    has begun, once that is committed, without a connection.
    """

    method: str
    path: str
    id: str
    summary: str
    right: Right | None
    handler: Handler
    answers: Mapping[int, type[BaseModel] | None]
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    again: Again | None = None
    at_once: AtOnce | None = None
    afterwards: Afterwards | None = None
    upto: int = 64 << 10  # bytes of the body
    whole: bool = (
        True  # the body is parsed as it stands; else the handler takes it apart, and it has room for a payload
    )
    may_be_new: bool = False  # the tenant of its path need not be there
    waits: bool = False  # for what happens, and itself sees to it that it does not for too long
    for_all: bool = False  # not about a tenant, but for the tokens of tenants as well
    tags: tuple[str, ...] = ()

    @property
    def writes(self) -> bool:
        """True when it changes something, so that all of it is one transaction."""
        return self.method != "GET"

    @property
    def of_tenant(self) -> bool:
        """True when it is about what belongs to one tenant."""
        return f"{{{TENANT}}}" in self.path

    @property
    def is_of_tenants(self) -> bool:
        """True when it is about tenants themselves, and not about what belongs to one."""
        return self.path == "/app" or self.path.endswith(f"{{{TENANT}}}")
