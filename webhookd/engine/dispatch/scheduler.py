"""Whose turn it is, and which slots its attempt takes: those of its endpoint, its host, and the daemon.

An attempt takes a slot of the daemon when it starts. One that has no answer after a second goes aside and gives the
slot to another, so that receivers which fall silent cannot take all slots before anybody knows. Endpoints that are
known to be slow or stuck share half of the slots, those that are stuck a quarter.
"""

import heapq
import itertools
from collections.abc import Iterable

from webhookd.engine.dispatch.payloads import Payload
from webhookd.engine.dispatch.queues import SILENT_SECONDS, EndpointQueue, Flight, Host, Standing, host_of
from webhookd.model import Delivery
from webhookd.policy.limiter import share
from webhookd.policy.members import Shares, alone
from webhookd.policy.rotation import Rotation

ASIDE_AFTER = 1.0  # seconds without an answer
FOREVER = float("inf")
ALONE = alone()
EGRESS_DOWN_SECONDS = 1.0  # until we look whether our way out is open again
ASIDE_PER_SLOT = 4  # attempts that may be aside, for each slot of the daemon
_AFTER = {Standing.PROVEN: Standing.SLOW, Standing.SLOW: Standing.STUCK, Standing.STUCK: Standing.PROVEN}


class Scheduler:
    """The queues that could start an attempt, and the attempts under way. All moments are of the monotonic clock."""

    def __init__(self, *, aside_after: float = ASIDE_AFTER) -> None:
        self._aside_after = aside_after
        self._slots = 0
        # Those that ask, by what is known of their endpoints: each standing has a rotation of its own.
        self._asking: tuple[Rotation[EndpointQueue], ...] = tuple(Rotation() for _ in Standing)
        self._last_standing = Standing.STUCK
        self._asleep: list[tuple[float, int, EndpointQueue]] = []  # a heap: those that may start at some moment
        self._numbers = itertools.count()  # so that the heap never compares queues
        self._hosts: dict[str, Host] = {}
        self._young: dict[Delivery, Flight] = {}  # oldest first
        self._old: dict[Delivery, Flight] = {}  # for longer than a second
        self._crowded: dict[Delivery, Flight] = {}  # old, but there is no room aside
        self._by_standing = [0, 0, 0]  # attempts under way, by what was known of their endpoint when they started
        self.started = 0  # attempts that hold a slot of the daemon
        self.aside = 0  # attempts that no longer do
        self._behind_silence, self._silence_until = 0, 0.0  # deliveries; good until that moment
        self.egress_down_at = 0.0  # when our way out was last found shut; 0 while it is open

    # Limits.

    def configure(
        self,
        slots: int,
        per_host: int,
        hosts: Iterable[Host],
        shares: Shares = ALONE,
    ) -> None:
        """Give the daemon so many slots, and these hosts our share of so many.

        It is not less than an endpoint of the host has. Those share a host that have one of our endpoints there.
        """
        self._slots = slots
        for host in filter(lambda host: host.queues, hosts):
            ids = [queue.endpoint.id for queue in host.queues]
            sharers = sorted({id_ for group in {shares.of(each) for each in ids} for id_ in group})
            key = min(ids)  # so that one slot goes where its endpoint's slot goes
            most = max(queue.most for queue in host.queues)
            host.most = max(share(per_host, *shares.place(sharers), key), most)

    def forget_hosts(self, *, beyond: int = 0) -> None:
        """Of more than so many, remember only those that have an endpoint, or an attempt under way."""
        if len(self._hosts) > beyond:
            self._hosts = {name: host for name, host in self._hosts.items() if host.queues or host.flying}

    def host(self, url: str) -> Host:
        """The host of an endpoint; it has slots when `configure` was told of the endpoint."""
        name = host_of(url)
        found = self._hosts.get(name)
        if found is None:
            found = self._hosts[name] = Host()
        return found

    def is_open(self, standing: Standing) -> bool:
        """True when an endpoint of this standing may start an attempt."""
        _, slow, stuck = self._by_standing
        if standing is Standing.STUCK:
            return stuck < max(self._slots // 4, 1)
        return standing is Standing.PROVEN or slow + stuck < max(self._slots // 2, 1)

    # Our own way out.

    def note_egress(self, is_down: bool | None, started: float, now: float) -> bool:
        """Follow an attempt that started then: was our way out shut, if it says so? True when that has changed.

        While it is, all would fail alike, so one attempt at a time looks whether it is open again.
        """
        before = self.egress_down_at
        if is_down:
            self.egress_down_at = now
        elif is_down is False and started > before:  # what began before proves nothing
            self.egress_down_at = 0.0
        return (before > 0) != (self.egress_down_at > 0)

    @property
    def problem(self) -> str:
        """Why nothing leaves, where that is no endpoint's fault, or nothing."""
        return "nothing connects to the proxy of [egress], so nothing is sent" if self.egress_down_at else ""

    def is_egress_down(self, now: float, seconds: float = EGRESS_DOWN_SECONDS) -> bool:
        """True when our way out was found shut in the last so many seconds; by default, when nothing starts."""
        return self.egress_down_at > 0 and now < self.egress_down_at + seconds

    # Turns.

    def ask(self, queue: EndpointQueue) -> None:
        """This queue may be able to start something."""
        self._asking[queue.standing].add(queue.endpoint.tenant, queue)

    def take(self, now: float) -> EndpointQueue | None:
        """A queue that starts an attempt now, as `start` is to be told; None when none can."""
        if self.started >= (1 if self.egress_down_at else self._slots) or self.is_egress_down(now):
            return None
        while (queue := self._next()) is not None:
            if not queue.ready or len(queue.flying) + queue.reserved >= queue.limit:
                pass  # it asks again when it is fed, or when an attempt of its own lands
            elif (until := queue.until()) > now:
                self._sleep(queue, until)
            elif not queue.host.has_slot():
                queue.host.waiting.add(queue.endpoint.tenant, queue)
            else:
                return queue
            self._ask_at(queue.host)
        return None

    def _next(self) -> EndpointQueue | None:
        """Whoever is next, of one standing after the other."""
        while (standing := self._next_standing()) is not None:
            queue = self._asking[standing].take()
            if queue is None or queue.standing is standing:
                return queue
            self.ask(queue)  # it asked when it stood better, or worse
        return None

    def _next_standing(self) -> Standing | None:
        _, slow, stuck = self._asking
        if not slow and not stuck:
            return Standing.PROVEN
        for _ in Standing:
            self._last_standing = standing = _AFTER[self._last_standing]
            if self._asking[standing] and self.is_open(standing):
                return standing
        return None

    def start(self, queue: EndpointQueue, delivery: Delivery, payload: Payload, now: float) -> Flight:
        """Take the slots of an attempt that starts."""
        flight = Flight(queue, delivery, payload, now)
        queue.flying[delivery] = self._young[delivery] = flight
        queue.host.flying += 1
        self._by_standing[flight.standing] += 1
        self.started += 1
        if queue.pace is not None:
            queue.pace.started(now)
        if queue.ready and len(queue.flying) + queue.reserved < queue.limit:
            self.ask(queue)
        return flight

    def land(self, flight: Flight) -> None:
        """Give back the slots of an attempt that is answered, to those who wait for them."""
        queue, delivery, host = flight.queue, flight.delivery, flight.host
        del queue.flying[delivery]
        if self._young.pop(delivery, None) is None:
            self._old.pop(delivery, None)
            self._crowded.pop(delivery, None)
        if flight.aside:
            self.aside -= 1
        else:
            self.started -= 1
        self._by_standing[flight.standing] -= 1
        host.flying -= 1
        if host.waiting:
            self._ask_at(host)
        if queue.ready:
            self.ask(queue)

    def vacated(self, queue: EndpointQueue) -> None:
        """A slot of this endpoint and its host is free that was of something beside the queue."""
        if queue.host.waiting:
            self._ask_at(queue.host)
        if queue.ready:
            self.ask(queue)

    def _ask_at(self, host: Host) -> None:
        """Let one ask that waits for a slot of this host, if there is one."""
        if host.has_slot() and (waiting := host.waiting.take()) is not None:
            self.ask(waiting)

    # Time.

    def _sleep(self, queue: EndpointQueue, until: float) -> None:
        if not queue.asleep:
            queue.asleep = True
            heapq.heappush(self._asleep, (until, next(self._numbers), queue))

    @property
    def upcoming(self) -> float:
        """The moment from which a queue may start that may not now; infinite when there is none."""
        return self._asleep[0][0] if self._asleep else FOREVER

    def wake(self, now: float) -> None:
        """Let the queues ask whose moment has come."""
        while self._asleep and self._asleep[0][0] <= now:
            _, _, queue = heapq.heappop(self._asleep)
            queue.asleep = False
            self.ask(queue)

    def age(self, now: float) -> None:
        """Set those aside that have waited too long, and doubt their endpoints."""
        for flight in _until(self._young, now - self._aside_after):
            del self._young[flight.delivery]
            self._old[flight.delivery] = self._crowded[flight.delivery] = flight
        for flight in self._old.values():  # once may not be enough: the endpoint may be known to be slow
            flight.queue.hears_nothing(flight.started, now)
        for flight in list(self._crowded.values())[: max(self._slots * ASIDE_PER_SLOT - self.aside, 0)]:
            del self._crowded[flight.delivery]
            flight.aside = True
            self.started -= 1
            self.aside += 1

    def stragglers(self, before: float) -> list[Delivery]:
        """The deliveries that started before that moment and whose batch still waits for them."""
        return [flight.delivery for flight in _until(self._old, before) if flight.delivery.batch is not None]

    def behind_silence(self, now: float) -> int:
        """How many deliveries wait behind attempts that have had no answer for a moment; counted now and then."""
        if now >= self._silence_until:
            self._silence_until = now + SILENT_SECONDS / 2
            flights = itertools.chain(self._old.values(), _until(self._young, now - SILENT_SECONDS))
            silent = {flight.queue for flight in flights if flight.queue.is_silent(now)}
            self._behind_silence = sum(queue.queued for queue in silent)
        return self._behind_silence


def _until(flights: dict[Delivery, Flight], moment: float) -> list[Flight]:
    return list(itertools.takewhile(lambda flight: flight.started <= moment, flights.values()))
