"""What one endpoint is owed from memory, how well it keeps up, and how much it may be sent at one time."""

from collections import deque
from collections.abc import Callable
from enum import IntEnum
from urllib.parse import urlsplit

from webhookd.engine.dispatch.feeds import Feed
from webhookd.engine.dispatch.order import Order
from webhookd.engine.dispatch.payloads import Payload
from webhookd.model import Delivery, Endpoint
from webhookd.policy.breaker import Breaker
from webhookd.policy.limiter import Pace, Signal, Width, share
from webhookd.policy.rotation import Rotation

GONE_MOST = 3  # answers of 410 in a row that disable an endpoint
QUEUED = 200  # deliveries that may wait for an endpoint whatever its pace
SPILLED_MOST = 1_000  # deliveries that an endpoint may have in the backlog because it cannot keep up
PACE_WEIGHT = 0.05  # of the newest latency in its moving average
SLOW_SECONDS = 1.0  # of latency: such an endpoint shares half of the daemon's slots with others of its kind
SILENT_SECONDS = 0.05  # without an answer while something is in flight: what waits there may wait for long
SILENT_FACTOR = 3.0  # times its own latency: an attempt that waits for so long is silent, not slow


class Standing(IntEnum):
    """What an endpoint's last answers say about the slots that it will hold."""

    PROVEN = 0  # it answers; or nothing is known against it yet
    SLOW = 1  # it answers after more than a second
    STUCK = 2  # nothing comes from it: one attempt at a time


class Host:
    """A receiver's machine, which several endpoints may share: their attempts, and the queues that wait for it."""

    __slots__ = ("flying", "most", "queues", "reserved", "waiting")

    def __init__(self) -> None:
        self.most = 0
        self.flying = 0
        self.reserved = 0  # slots that are left to what waits beside the queues
        self.queues: set[EndpointQueue] = set()
        self.waiting: Rotation[EndpointQueue] = Rotation()

    def has_slot(self) -> bool:
        """True when it may be sent one more at a time."""
        return self.flying + self.reserved < self.most


class Flight:
    """An attempt under way. `started` is its moment, `standing` what was known of its endpoint then."""

    __slots__ = ("aside", "delivery", "host", "payload", "queue", "standing", "started")

    def __init__(self, queue: "EndpointQueue", delivery: Delivery, payload: Payload, now: float) -> None:
        self.queue = queue
        self.host = queue.host  # its endpoint may move to another meanwhile
        self.delivery = delivery
        self.payload = payload
        self.started = now
        self.standing = queue.standing
        self.aside = False  # it holds none of the daemon's slots any longer


class EndpointQueue:
    """Deliveries without a payload (`waiting`), with one (`ready`), and in flight (`flying`, oldest first).

    All moments are of the monotonic clock.
    """

    __slots__ = (
        "_answered_at",
        "_good_at",
        "_width",
        "asleep",
        "blocked_until",
        "breaker",
        "endpoint",
        "feed",
        "flying",
        "gone",
        "host",
        "judged_at",
        "latency",
        "limit",
        "order",
        "pace",
        "ready",
        "reserved",
        "spilled",
        "standing",
        "unwanted_at",
        "waiting",
    )

    def __init__(self, endpoint: Endpoint, host: Host) -> None:
        self.endpoint = endpoint
        self.host = host
        host.queues.add(self)
        self.waiting: deque[Delivery] = deque()
        self.ready: deque[tuple[Delivery, Payload]] = deque()
        self.flying: dict[Delivery, Flight] = {}
        self.order: Order | None = None
        self.reserved = 0  # slots that are, or are to be, of what is sent beside the queue
        self.latency = 0.0  # moving average, seconds; 0 before the first answer
        self.blocked_until = 0.0  # the receiver asked us to wait
        self.asleep = False  # it will be woken when it may start
        self.pace: Pace | None = None
        self.standing = Standing.PROVEN
        self.breaker = Breaker()
        self.feed = Feed.MEMORY
        self.spilled = 0  # deliveries put off because it could not keep up; how many are left, the backlog knows
        self.unwanted_at: float | None = None  # when an attempt began whose answer wanted nothing more
        self.judged_at = 0.0  # when it was last asked whether it has failed for too long
        self.gone: deque[float] = deque(maxlen=GONE_MOST)  # when attempts began, in a row, that met a 410
        self.limit = endpoint.max_in_flight  # attempts at one time, as things stand
        self._width = Width(endpoint.max_in_flight)
        self._good_at = 0.0
        self._answered_at = 0.0

    @property
    def most(self) -> int:
        """Our share of what the endpoint allows at one time."""
        return self._width.most

    @property
    def queued(self) -> int:
        """Deliveries that are not in flight, but for those that only wait for others of their key."""
        if (order := self.order) is None:
            return len(self.waiting) + len(self.ready)
        return order.size - (order.behind if order.by_key else 0) - len(self.flying)

    @property
    def has_some(self) -> bool:
        """True when something waits here."""
        return bool(self.ready or self.waiting) or self.order is not None

    def until(self) -> float:
        """The moment from which the receiver, its breaker and its rate allow a start."""
        until, probe = self.blocked_until, self.breaker.retry_at
        if probe > until:
            until = probe
        return self.pace.until if self.pace is not None and self.pace.until > until else until

    def is_shut(self, now: float) -> bool:
        """True when nothing may be sent, and what waits here had better be elsewhere."""
        return self.is_closed or self.breaker.is_open(now)

    @property
    def is_closed(self) -> bool:
        """True when it is not ours to send; one that keeps an order has no other sender than that of its cursor."""
        return self.feed is Feed.NONE or (self.order is not None and self.feed is Feed.MEMORY)

    def is_well(self) -> bool:
        """True when nothing speaks against feeding it from memory."""
        return self.breaker.is_closed and self.standing is not Standing.STUCK

    def has_slot(self) -> bool:
        """True when the endpoint and its host may be sent one more at a time."""
        return len(self.flying) + self.reserved < self.limit and self.host.has_slot()

    def is_held_up(self, now: float) -> bool:
        """True when what waits here waits for the endpoint, not for the daemon."""
        return self.standing is not Standing.PROVEN or not self.has_slot() or self.until() > now

    def is_silent(self, now: float) -> bool:
        """True when attempts are under way and none has been answered for a moment."""
        since = now - SILENT_SECONDS
        return bool(self.flying) and self._answered_at < since and next(iter(self.flying.values())).started < since

    def is_full(self, now: float, patience: float) -> bool:
        """True when a delivery that is queued now would wait for its endpoint for longer than `patience` seconds."""
        queued = self.queued
        if self.is_shut(now):
            return True
        if self.standing is Standing.STUCK or self.limit == 0 or not self.breaker.is_closed:
            return queued + len(self.flying) >= self.limit
        # Where the rate is known, so is what will not start in time, unless it may be nothing that is wanted.
        least = QUEUED if self.pace is None or self.endpoint.data_filter else min(QUEUED, 2 * patience * self.pace.rate)
        return queued >= least and self._expected_wait(now) > patience

    def _expected_wait(self, now: float) -> float:
        if self.blocked_until > now:
            return self.blocked_until - now
        seconds = self.latency
        if self.is_silent(now):
            seconds = max(seconds, now - max(self._answered_at, next(iter(self.flying.values())).started))
        wait = self.queued * seconds / self.limit
        return wait if self.pace is None else max(wait, self.queued / self.pace.rate)

    def appetite(self, now: float, most: int) -> int:
        """How many more deliveries could start within about a second."""
        if self.blocked_until > now or self.is_shut(now) or self.until() > now + SLOW_SECONDS:
            return 0
        if self.order is not None and not self.order.is_known:
            return 0
        limit = self.limit
        if self.standing is Standing.STUCK or not self.breaker.is_closed:
            wanted = limit
        elif self.latency == 0:
            wanted = 2 * limit
        else:  # as many again as it has slots keep an endpoint that answers at once busy until the next claim
            wanted = max(limit, int(limit / self.latency))
        if self.pace is not None:
            wanted = min(wanted, max(int(self.pace.rate), 1))
        if self.order is not None:  # of each key one is counted
            most = max(most, 2 * limit)
        return max(min(wanted, most) - self.queued - len(self.flying), 0)

    def share(self, rank: int, live: int) -> None:
        """Keep to what a daemon at place `rank` of `live` may take of the limits; the only sender takes all."""
        endpoint = self.endpoint
        if self.feed is Feed.CURSOR:
            rank, live = 0, 1
        self._width.resize(share(endpoint.max_in_flight, rank, live, endpoint.id))
        rate = endpoint.rate_limit / min(live, endpoint.max_in_flight)  # where slots are few, not all send
        if not rate:
            self.pace = None
        elif self.pace is None:
            self.pace = Pace(rate)
        else:
            self.pace.change(rate)
        self._recount()

    def learn(self, signal: Signal, started: float, now: float) -> None:
        """Follow the answer to an attempt that started then."""
        self._answered_at = now
        if signal is Signal.OURS:
            return
        seconds = now - started
        self.latency = self.latency + (seconds - self.latency) * PACE_WEIGHT if self.latency else seconds
        self._width.learn(signal, started, now)
        if signal is Signal.GOOD:
            self._good_at = now
            self.standing = Standing.SLOW if self.latency > SLOW_SECONDS else Standing.PROVEN
        elif signal is Signal.LATE or signal is Signal.LOST:
            self.standing = Standing.STUCK
        self._recount()

    def last_word(self) -> tuple[str, float] | None:
        """How its receiver has said that it wants nothing more, if it has, and when that began."""
        if self.unwanted_at is not None:
            return "receiver", self.unwanted_at
        return ("http_410", min(self.gone)) if len(self.gone) == GONE_MOST else None

    def hears_nothing(self, started: float, now: float) -> None:
        """An attempt that started then is still without an answer."""
        if self._good_at < started and now - started > SILENT_FACTOR * self.latency:
            self.standing = Standing.STUCK
            self._recount()

    def succeeded(self, started: float, now: float) -> None:
        """Let the breaker know of an attempt that went well."""
        self.gone.clear()
        if not self.breaker.is_closed or self.breaker.has_failures:
            self.breaker.succeeded(started, now, self._width.most)
            self._recount()

    def failed(self, started: float, now: float, random: float) -> bool:
        """Let the breaker know of one that failed; True when that opens it."""
        opened = self.breaker.failed(started, now, random)
        self._recount()
        return opened

    def rest(self) -> None:
        """Let the breaker know that nothing waits elsewhere."""
        if not (self.breaker.is_closed or self.queued or self.flying):
            self.breaker.rest()
            self._recount()

    def follow(self, feed: Feed, fails: int, retry_at: float) -> None:
        """Get what is owed from there; the breaker goes on where another's was. `share` is to be called next."""
        if feed is not Feed.CURSOR and self.feed is not feed:
            self.breaker = Breaker()  # what we knew is old, or another's to know
        if feed is Feed.CURSOR and self.feed is not feed and fails > self.breaker.fails:
            self.breaker.reopen(fails, retry_at)
        self.feed = feed
        self.spilled = 0

    def _recount(self) -> None:
        if self.is_closed:
            self.limit = 0
            return
        width = self._width
        limit = 1 if self.standing is Standing.STUCK else min(int(width.value), self.breaker.allowance)
        self.limit = min(limit, width.most)

    def change(self, endpoint: Endpoint, host: Host) -> None:
        """Go on with a changed endpoint; what is queued follows when it starts, its limits with the next `share`."""
        self.endpoint = endpoint
        self.host.queues.discard(self)
        self.host = host
        host.queues.add(self)

    def has_fed(self, delivery: Delivery, payload: Payload) -> None:
        """The payload of this one is at hand."""
        if self.order is None:
            self.ready.append((delivery, payload))
            return
        is_ready, wanted = self.order.has_fed(delivery, payload)
        if is_ready:
            self.ready.append((delivery, payload))
        if wanted is not None:
            self.waiting.append(wanted)

    def take_ready(self, delivery: Delivery) -> Payload | None:
        """Take out this one, if it is ready."""
        for place, (each, payload) in enumerate(self.ready):
            if each is delivery:
                del self.ready[place]
                return payload
        return None

    def take_all(self) -> list[tuple[Delivery, Payload | None]]:
        """Take out everything that is not in flight."""
        everything = [*self.ready, *((delivery, None) for delivery in self.waiting)]
        self.ready.clear()
        self.waiting.clear()
        return everything

    def take_overdue(self, before: float) -> list[tuple[Delivery, Payload | None]]:
        """Take out what was offered before that moment; claims of the backlog stay, since their lease ends."""
        return self.take(lambda delivery: delivery.batch is not None and delivery.since < before)

    def take(self, which: Callable[[Delivery], bool]) -> list[tuple[Delivery, Payload | None]]:
        """Take out what of it is not in flight."""
        taken: list[tuple[Delivery, Payload | None]] = []
        ready, self.ready = self.ready, deque()
        for delivery, payload in ready:
            if which(delivery):
                taken.append((delivery, payload))
            else:
                self.ready.append((delivery, payload))
        waiting, self.waiting = self.waiting, deque()
        for delivery in waiting:
            if which(delivery):
                taken.append((delivery, None))
            else:
                self.waiting.append(delivery)
        return taken


def host_of(url: str) -> str:
    """The host and port that a URL leads to, to tell receivers apart."""
    return urlsplit(url).netloc.rpartition("@")[2].lower()
