"""What one endpoint is owed from memory, and how well it keeps up."""

from collections import deque
from collections.abc import Iterator

from webhookd.model import Delivery, Endpoint
from webhookd.payloads import Payload

PACE_WEIGHT = 0.05  # of the newest latency in its moving average
SILENT = 0.3  # seconds without an answer that say more than the average; below, the machine may just be busy


class EndpointQueue:
    """Deliveries without a payload (`waiting`), with one (`ready`), and in flight (`flying`: start, oldest first).

    All moments are of the monotonic clock.
    """

    __slots__ = ("blocked_until", "endpoint", "flying", "latency", "ready", "waiting")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.waiting: deque[Delivery] = deque()
        self.ready: deque[tuple[Delivery, Payload]] = deque()
        self.flying: dict[Delivery, float] = {}
        self.latency = 0.0  # moving average, seconds
        self.blocked_until = 0.0  # the receiver asked us to wait

    def __len__(self) -> int:
        return len(self.waiting) + len(self.ready)

    def startable(self, now: float) -> bool:
        """True when an attempt can start as soon as the daemon has a slot."""
        return bool(self.ready) and not self.is_held_up(now)

    def is_held_up(self, now: float) -> bool:
        """True when what waits here waits for the endpoint, not for the daemon."""
        return len(self.flying) >= self.endpoint.max_in_flight or self.blocked_until > now

    def expected_wait(self, now: float) -> float:
        """Seconds until a delivery that is queued now would start, by the endpoint's pace."""
        if self.blocked_until > now:
            return self.blocked_until - now
        pace = self.latency
        if self.flying and (silent := now - next(iter(self.flying.values()))) > SILENT:
            pace = max(pace, silent)
        return len(self) * pace / self.endpoint.max_in_flight

    def landed(self, delivery: Delivery, now: float) -> float:
        """Take an answered delivery out of flight; the seconds it took."""
        seconds = now - self.flying.pop(delivery)
        self.latency += (seconds - self.latency) * PACE_WEIGHT
        return seconds

    def stragglers(self, before: float) -> Iterator[Delivery]:
        """Deliveries that started before that moment and whose batch still waits for them."""
        for delivery, started in self.flying.items():
            if started > before:
                return
            if delivery.batch is not None:
                yield delivery

    def change(self, endpoint: Endpoint) -> None:
        """Go on with a changed endpoint, also for what is queued."""
        self.endpoint = endpoint
        for delivery, _ in self.ready:
            delivery.endpoint = endpoint
        for delivery in self.waiting:
            delivery.endpoint = endpoint

    def take_all(self) -> list[tuple[Delivery, Payload | None]]:
        """Take out everything that is not in flight."""
        everything = [*self.ready, *((delivery, None) for delivery in self.waiting)]
        self.ready.clear()
        self.waiting.clear()
        return everything

    def take_overdue(self, before: float) -> list[tuple[Delivery, Payload | None]]:
        """Take out what was offered before that moment; claims of the backlog stay, since their lease ends."""
        overdue: list[tuple[Delivery, Payload | None]] = []
        ready, self.ready = self.ready, deque()
        for delivery, payload in ready:
            if delivery.batch is not None and delivery.since < before:
                overdue.append((delivery, payload))
            else:
                self.ready.append((delivery, payload))
        waiting, self.waiting = self.waiting, deque()
        for delivery in waiting:
            if delivery.batch is not None and delivery.since < before:
                overdue.append((delivery, None))
            else:
                self.waiting.append(delivery)
        return overdue
