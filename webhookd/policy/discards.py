"""Which deliveries nobody wants any longer: operators discard them by what they are, and by when their events came."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, NamedTuple

from webhookd.model import Endpoint, Event
from webhookd.policy.matching import matches_type

KEPT: Final = 256  # tuples of endpoints with some left out


class Discard(NamedTuple):
    """One; what is None is any. Of replays, those up to the number `replays` were of before it: later ones count."""

    id: int
    type: str | None  # a pattern, as endpoints have
    tenant: str | None
    endpoint_id: int | None
    since: datetime
    until: datetime  # never in the future when it was said
    replays: int

    def is_about(self, event: Event) -> bool:
        """True when deliveries of this event are discarded, be it for one endpoint."""
        return (
            self.since <= event.created_at <= self.until
            and self.tenant in (None, event.tenant)
            and (self.type is None or matches_type(self.type, event.type))
        )


class Discards:
    """All there are. What is newer than the last of them costs a comparison."""

    def __init__(self, discards: Iterable[Discard] = ()) -> None:
        self._discards = tuple(discards)
        self._until: Any = max((each.until for each in self._discards), default=None)
        # By the endpoints that an event is owed to, and those that are left out. Whoever keeps what is matched tells
        # by the very tuple what is alike.
        self._without: dict[tuple[int, frozenset[int]], tuple[tuple[Endpoint, ...], tuple[Endpoint, ...]]] = {}

    def __bool__(self) -> bool:
        """True when there is one."""
        return bool(self._discards)

    def _about(self, event: Event) -> list[Discard]:
        if self._until is None or event.created_at > self._until:
            return []
        return [each for each in self._discards if each.is_about(event)]

    def covers(self, event: Event, endpoint_id: int, replay: int = 0) -> bool:
        """True when this delivery is discarded; `replay` is the number of the one that it is of."""
        return any(each.endpoint_id in (None, endpoint_id) and replay <= each.replays for each in self._about(event))

    def without(self, event: Event, endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        """Those of these endpoints that still get the event: the very tuple, where all do."""
        about = self._about(event)
        if not about:
            return endpoints
        left_out = frozenset(each.endpoint_id for each in about if each.endpoint_id is not None)
        if len(left_out) < len({each.endpoint_id for each in about}):  # one is for all
            return ()
        key = id(endpoints), left_out
        if key not in self._without:
            found = tuple(endpoint for endpoint in endpoints if endpoint.id not in left_out)
            if len(self._without) >= KEPT:
                self._without = {}
            self._without[key] = endpoints, endpoints if len(found) == len(endpoints) else found
        return self._without[key][1]
