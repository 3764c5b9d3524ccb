"""Who may do what by the HTTP API: roles, and what a portal's token is capable of."""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, NamedTuple


class Right(Enum):
    """What an operation wants of its caller."""

    LOOK = "look"
    TENANTS = "tenants"  # make, change and end them, and what belongs to no tenant
    ENDPOINTS = "endpoints"
    SEE_SECRETS = "see secrets"
    CHANGE_SECRETS = "change secrets"
    EMIT = "emit"
    ATTEMPT = "attempt"  # resend, test, replay
    POLL = "poll"  # fetch what an endpoint is owed
    TOKENS = "tokens"
    ERASE = "erase"


ROLES: Final[Mapping[str, frozenset[Right]]] = MappingProxyType(
    {
        "admin": frozenset(Right),
        "operator": frozenset(Right) - {Right.TOKENS, Right.SEE_SECRETS, Right.CHANGE_SECRETS, Right.ERASE},
        "read": frozenset({Right.LOOK}),
        "producer": frozenset({Right.EMIT}),
        "poll": frozenset({Right.POLL}),  # of one endpoint
        "portal": frozenset(),  # what its capabilities say
    }
)
EVERYBODYS: Final = tuple(sorted(ROLES.keys() - {"portal", "poll"}))  # roles that are not of one tenant or endpoint
OPERATORS: Final = frozenset({Right.TENANTS, Right.TOKENS, Right.ERASE})
CAPABILITIES: Final[Mapping[str, Right]] = MappingProxyType(
    {
        "ViewBase": Right.LOOK,
        "ViewEndpointSecret": Right.SEE_SECRETS,
        "ManageEndpointSecret": Right.CHANGE_SECRETS,
        "ManageEndpoint": Right.ENDPOINTS,
        "CreateAttempts": Right.ATTEMPT,
    }
)


class Caller(NamedTuple):
    """Who asks. `tenant` is the id of the only one whose things these are to see, None for all.

    A portal sees event types that have flags where one is among `feature_flags`. `endpoint` is the number of the only
    one that it polls, None for all.
    """

    token: str  # its id
    name: str  # as the audit has it
    role: str
    tenant: str | None = None
    capabilities: tuple[str, ...] = ()
    feature_flags: tuple[str, ...] = ()
    endpoint: int | None = None

    @property
    def rights(self) -> frozenset[Right]:
        """What it may do; of one tenant nothing that is about tenants, its own included: that is the operator's."""
        if self.role == "poll" and self.endpoint is None:
            return frozenset()
        found = ROLES.get(self.role, frozenset()) | {
            CAPABILITIES[each] for each in self.capabilities if each in CAPABILITIES
        }
        return found if self.tenant is None else found - OPERATORS

    @property
    def flags(self) -> tuple[str, ...] | None:
        """Of which one is among those of an event type that it sees; None where it sees all."""
        return self.feature_flags if self.role == "portal" else None
