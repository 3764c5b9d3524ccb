"""What the parts are told: one value of each heartbeat and one of each configuration, which all of them look at."""

from collections.abc import Awaitable, Callable, Iterable, Sequence

from webhookd.model import Batch, Delivery, Endpoint, Event
from webhookd.policy.discards import Discards
from webhookd.policy.members import Member, Shares, alone, shares


class Heartbeat:
    """What our last heartbeat was told; only the engine writes it. Moments are on the database's clock."""

    __slots__ = ("downtimes", "low", "members", "steady_until")

    def __init__(self) -> None:
        self.low = 0  # every batch up to here is done
        self.downtimes: Sequence[tuple[float, float]] = ()  # when no daemon ran, which counts against no delivery
        self.members: Sequence[Member] = ()  # the live daemons, ourselves among them
        self.steady_until = 0.0  # until then we may call others dead


class Subscriptions:
    """Our endpoints that are active, who of all is owed an event, and what nobody wants; only the engine writes it."""

    __slots__ = (
        "_look",
        "_subscribers",
        "discards",
        "endpoint",
        "endpoints",
        "endpoints_for",
        "me",
        "pollers",
        "shares",
        "version",
    )

    def __init__(self, me: int, look: Callable[[int], Awaitable[None]] | None = None) -> None:
        self.me = me
        self.version = 0  # of the endpoints, as of which all this is
        self._look = look
        self.endpoints: dict[int, Endpoint] = {}  # by number
        self.endpoint: Callable[[int], Endpoint | None] = self.endpoints.get  # asked of thousands at a time
        self.discards = Discards()
        self._subscribers: Callable[[Event], tuple[Endpoint, ...]] = lambda event: ()
        self.endpoints_for: Callable[[Event], tuple[Endpoint, ...]] = self._subscribers
        self.shares: Shares = alone(me)  # who else has ours
        self.pollers: Callable[[Batch, Sequence[Event]], Awaitable[None]] | None = (
            None  # told what has come, while one waits
        )

    async def catch_up(self, version: int) -> None:
        """Know at least the endpoints of that version: one may have been made a moment before its first event."""
        if self.version < version and self._look is not None:
            await self._look(version)

    def change(self, endpoints: Iterable[Endpoint], endpoints_for: Callable[[Event], tuple[Endpoint, ...]]) -> None:
        """Have these in the place of the others; `divide` is to be called next."""
        self.endpoints.clear()
        self.endpoints.update((endpoint.id, endpoint) for endpoint in endpoints)
        self._subscribers = endpoints_for
        self.discard(self.discards)

    def put(self, changed: Sequence[Endpoint], gone: Sequence[int], members: Sequence[Member]) -> Shares:
        """Have these in their places, and those no longer; who of the members shares them."""
        sealed = {endpoint.id: endpoint.sealed_by for endpoint in changed}
        self.endpoints.update((endpoint.id, endpoint) for endpoint in changed)
        for id_ in gone:
            self.endpoints.pop(id_, None)
        self.shares = self.shares.changed(sealed, gone, members)
        return self.shares

    def discard(self, discards: Discards) -> None:
        """Owe nobody what these cover."""
        self.discards = discards
        self.endpoints_for = self._wanted if discards else self._subscribers

    def _wanted(self, event: Event) -> tuple[Endpoint, ...]:
        return self.discards.without(event, self._subscribers(event))

    def is_discarded_for_all(self, event: Event) -> bool:
        """True when nobody gets it although somebody subscribes to it."""
        return bool(self.discards) and bool(self._subscribers(event)) and not self.endpoints_for(event)

    def is_discarded(self, delivery: Delivery) -> bool:
        """True when nobody wants it any longer."""
        return bool(self.discards) and self.discards.covers(delivery.event, delivery.endpoint.id, delivery.replay)

    def divide(self, members: Sequence[Member]) -> Shares:
        """Know who of these has which of ours."""
        sealed = {id_: endpoint.sealed_by for id_, endpoint in self.endpoints.items() if endpoint.sealed_by}
        self.shares = shares(self.me, self.endpoints, members, sealed)
        return self.shares
