"""What the reader has in hand: the events of opened batches, by tenant, and whose turn it is."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from webhookd.model import Batch, Endpoint, Event

# Those that an event is owed to, one after the other; None is a moment in which others may have their turn.
Pairs = Iterator[tuple[Event, Endpoint] | None]


class Portion(NamedTuple):
    """The events of one tenant in a batch, as far as they have not been offered, and what they weigh."""

    batch: Batch
    tenant: str
    events: int
    pairs: Pairs


def weight(event: Event) -> int:
    """1 for an event, and as much again for each KiB of what is read of it before its payload."""
    size = len(event.type) + len(event.tenant) + len(event.ordering_key or "") + len(event.metadata or b"")
    return 1 + size // 1_024


class Buffer:
    """Portions in turns: of one tenant after the other, and of each one portion after the other."""

    def __init__(self) -> None:
        self._portions: dict[str, deque[Portion]] = {}  # in the order of their turns, tenants too
        self._events: dict[str, int] = {}
        self._left: dict[Batch, int] = {}  # portions
        self.events = 0  # that were not offered to all of their endpoints

    def __len__(self) -> int:
        """Tenants that have something in hand."""
        return len(self._portions)

    @property
    def tenants(self) -> Sequence[str]:
        """Who has something in hand."""
        return list(self._portions)

    def full(self, most: int) -> list[str]:
        """Who has so many events in hand."""
        return [tenant for tenant, events in self._events.items() if events >= most]

    def take(self, batch: Batch, owed: Mapping[str, tuple[int, Pairs]]) -> None:
        """Have a batch in hand: by tenant, the weight of its events and whom they are owed to."""
        self._left[batch] = len(owed)
        for tenant, (events, pairs) in owed.items():
            self._portions.setdefault(tenant, deque()).append(Portion(batch, tenant, events, pairs))
            self._events[tenant] = self._events.get(tenant, 0) + events
            self.events += events

    def turn(self) -> Portion:
        """The portion whose turn it is; the next turn is another's, if there is another."""
        tenant = next(iter(self._portions))
        portions = self._portions[tenant] = self._portions.pop(tenant)
        portion = portions[0]
        portions.rotate(-1)
        return portion

    def finish(self, portion: Portion) -> bool:
        """All of this portion is offered; True when it was the last of its batch."""
        tenant, batch = portion.tenant, portion.batch
        self._portions[tenant].remove(portion)
        self._events[tenant] -= portion.events
        self.events -= portion.events
        if not self._portions[tenant]:
            del self._portions[tenant], self._events[tenant]
        self._left[batch] -= 1
        if self._left[batch]:
            return False
        del self._left[batch]
        return True
