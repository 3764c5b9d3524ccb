"""The engine: the parts that deliver from one database, and what they are told.

reader ───┐                              to stop: those on the left claim no more; the dispatcher finishes
retrier ──┼─▶ dispatcher ─▶ recorder     what is in flight; the recorder writes it; what was never sent is given back
follower ─┘
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from webhookd.engine import (
    discards,
    janitor,
    neighbours,
    order_keeper,
    recorder,
    replays,
    retrier,
    shots,
    statistics,
)
from webhookd.engine.clock import Clock
from webhookd.engine.counting import count
from webhookd.engine.discards import DiscardKeeper
from webhookd.engine.dispatch import dispatcher, feeder, lanes
from webhookd.engine.dispatch.dispatcher import Dispatcher
from webhookd.engine.dispatch.settings import Settings
from webhookd.engine.intake import polling, reader
from webhookd.engine.intake.outage import Outage
from webhookd.engine.intake.reader import Reader
from webhookd.engine.janitor import SILENT, Beat
from webhookd.engine.order_keeper import OrderKeeper
from webhookd.engine.parked import follower, log_pages
from webhookd.engine.parked.follower import Follower
from webhookd.engine.parked.log_pages import LogPages
from webhookd.engine.polled import polls, reading
from webhookd.engine.polled.polls import Polls
from webhookd.engine.recorder import Recorder
from webhookd.engine.replays import Replays
from webhookd.engine.retrier import Retrier
from webhookd.engine.shots import Shots
from webhookd.engine.state import Heartbeat, Subscriptions
from webhookd.engine.statistics import Statistics
from webhookd.model import Endpoint, Event, Result
from webhookd.policy.backoff import over_before
from webhookd.policy.discards import Discards
from webhookd.policy.matching import Matcher
from webhookd.policy.parking import Parking
from webhookd.tally import Tally
from webhookd.tasks import Setbacks, is_worth_a_line

CLAIM_SECONDS = 2.0  # for a claim that is under way; one that is lost is adopted or runs out
DRAIN_SECONDS = 8.0  # for writing the last results, beyond the attempts in flight: systemd waits for 30 in all

log = structlog.get_logger("webhookd.daemon")


@dataclass(frozen=True, slots=True)
class Intervals:
    """How often things happen, in seconds; tests run the same daemon at a tenth of it."""

    beat: float = janitor.BEAT_SECONDS
    rescue: float = reader.RESCUE_SECONDS
    look: float = retrier.LOOK_SECONDS
    flush: float = recorder.FLUSH_SECONDS
    patience: float = dispatcher.PATIENCE
    neighbours: float = neighbours.LOOK_SECONDS

    @property
    def dead_after(self) -> float:
        """Without a heartbeat, until a daemon is dead to the others."""
        return self.beat * janitor.DEAD_AFTER_BEATS


class Batches(reader.Batches, feeder.Store, retrier.Heads, Protocol):
    """The log, and what is in it."""

    async def heads(self, ids: Sequence[int], lo: datetime, hi: datetime, along: int = -1) -> list[Event]:
        """Events, but those that cannot be read, with payloads of so many bytes at most."""


class ParkingStore(follower.Store, log_pages.Store, Protocol):
    """Who is parked, and the log as cursors read it."""


class WakeUp(polling.WakeUp, Protocol):
    """Being woken by producers."""

    async def run(self, daemon: int) -> None:
        """Ask for what the reader wants, until cancelled, as this daemon."""


@dataclass(frozen=True, slots=True)
class Stores:
    """The tables, as the parts use them."""

    batches: Batches
    backlog: retrier.Backlog
    parking: ParkingStore
    results: recorder.Results
    shots: shots.Store
    replays: replays.Store
    discards: discards.Store
    order: order_keeper.Store
    statistics: statistics.Store
    polled_log: polls.Newest
    polled: reading.Contents


class Engine:
    """Delivers, as the daemon `owner`, to those that `configure` names; whoever beats tells it what was heard."""

    def __init__(
        self,
        owner: int,
        stores: Stores,
        wakeup: WakeUp,
        outage: Outage,
        sender: lanes.Sender,
        clock: Clock,
        parking: Parking,
        delivery: Settings,
        intervals: Intervals,
        *,
        user_agent: str,
        tally: Tally,
        catch_up: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self._tally = tally
        dead_after = intervals.dead_after
        self._intervals = intervals
        self._wakeup = wakeup
        self._matcher = Matcher(())
        self._silent = ""  # why the others may take us for dead
        self._refusals = 0  # heartbeats at which there had been events without a tenant
        self._heartbeat = beat = Heartbeat()
        self._subscriptions = subscriptions = Subscriptions(owner, catch_up)
        self.statistics = Statistics(stores.statistics)
        self.recorder = Recorder(
            stores.results,
            owner,
            flush_seconds=intervals.flush,
            is_discarded=subscriptions.is_discarded,
            on_recorded=self._recorded,
        )
        self.dispatcher = Dispatcher(
            stores.batches,
            sender,
            self.recorder,
            clock,
            beat,
            delivery,
            on_trouble=lambda *trouble: self.follower.trouble(*trouble),
            random=random.random,  # jitter
            user_agent=user_agent,
            is_discarded=subscriptions.is_discarded,
            patience=intervals.patience,
        )
        self.retrier = Retrier(
            stores.backlog,
            stores.batches,
            self.dispatcher,
            self.recorder,
            subscriptions.endpoint,
            look_seconds=intervals.look,
        )
        self.order_keeper = OrderKeeper(
            stores.order, stores.batches, self.dispatcher, self.recorder, look_seconds=intervals.look
        )
        self._pages = LogPages(stores.parking, stores.batches, subscriptions)
        self.follower = Follower(
            stores.parking,
            self._pages,
            self.dispatcher,
            self.recorder,
            parking,
            beat,
            subscriptions,
            owes=lambda endpoint_id: endpoint_id in self.retrier.due,
            over_before=lambda endpoint: over_before(endpoint.retry, clock.now(), beat.downtimes),
            dead_after=dead_after,
            look_seconds=intervals.look,
        )
        self.shots = Shots(
            stores.shots,
            stores.batches,
            self.dispatcher.reservations,
            sender,
            clock,
            user_agent=user_agent,
            look_seconds=intervals.look,
        )
        self.polls = Polls(stores.polled_log, stores.polled, subscriptions, user_agent)
        self.discards = DiscardKeeper(stores.discards, self._discard, look_seconds=intervals.look)
        self.replays = Replays(stores.replays, self.dispatcher, subscriptions, look_seconds=intervals.look)
        self.reader = Reader(
            stores.batches,
            wakeup,
            self.dispatcher,
            self.recorder,
            self.follower,
            beat,
            subscriptions,
            outage,
            dead_after=dead_after,
            rescue_seconds=intervals.rescue,
        )

        self._claimers = (
            self.reader,
            self.retrier,
            self.follower,
            self.order_keeper,
            self.replays,
            self.discards,
        )

    # What it is told.

    def begin(self, beat: Beat, low: int) -> None:
        """Know what the first heartbeat was told, before anything is claimed: else an outage looks as if it counted."""
        self._heartbeat.low = low
        self._heartbeat.downtimes = beat.downtimes
        self._heartbeat.members = beat.members
        self.polls.share(len(beat.members))

    def beaten(self, beat: Beat, low: int, steady: bool) -> None:
        """Go on as a heartbeat says; `steady` when we may judge by beats who is dead."""
        self.begin(beat, low)
        self._heartbeat.steady_until = beat.now + 1.5 * self._intervals.beat if steady else 0.0
        self.dispatcher.share(self._subscriptions.divide(beat.members))
        self._silent = ""
        self.dispatcher.hold(False)
        if refused := self._matcher.refused:
            self._refusals += 1
            if is_worth_a_line(self._refusals):
                log.warning("events_without_tenant", events=refused)
                self._matcher.refused = 0

    def silenced(self) -> None:
        """Start and adopt nothing: nobody can know whether we are alive."""
        self._silent = SILENT
        self.dispatcher.hold(True)
        self._heartbeat.steady_until = 0.0

    def discard(self, discards: Discards) -> None:
        """Owe nobody what these cover, of all that is read from now on."""
        self._subscriptions.discard(discards)
        self._pages.forget()
        self.polls.forget()

    async def _discard(self, discards: Discards) -> None:
        self.discard(discards)
        await self.dispatcher.discard()

    def prepare(self, endpoints: Sequence[Endpoint]) -> Iterator[None]:
        """Do most of what `configure` does with these, in pieces, between which others may have their turn."""
        return self.dispatcher.prepare(endpoints)

    def configure(self, endpoints: Sequence[Endpoint], matcher: Matcher, delivery: Settings, version: int) -> Matcher:
        """Send to these, owe to whom `matcher` says, all at once; what did so before, which takes a moment to free.

        `version` is that of all endpoints which the matcher knows.
        """
        self._subscriptions.version = version
        self._subscriptions.change(endpoints, matcher.endpoints_for)
        self.dispatcher.configure(endpoints, delivery)
        self.dispatcher.share(self._subscriptions.divide(self._heartbeat.members))
        self._pages.forget()
        self.follower.changed()
        before, self._matcher = self._matcher, matcher
        return before

    def change(self, endpoints: Sequence[Endpoint], gone: Sequence[int], version: int) -> None:
        """Send to these as they are now, and to those no longer, and owe as the matcher says that has changed."""
        self._subscriptions.version = version
        shares = self._subscriptions.put(endpoints, gone, self._heartbeat.members)
        self.dispatcher.change(endpoints, gone, shares)
        self._pages.forget()
        self.follower.changed()

    def _recorded(self, result: Result) -> None:
        self.statistics.add(result)
        count(self._tally, result)

    # What it tells.

    @property
    def endpoints(self) -> Mapping[int, Endpoint]:
        """Those that it sends to, by number."""
        return self._subscriptions.endpoints

    @property
    def away(self) -> str:
        """What keeps us from delivering, whatever it is, or nothing."""
        return self.reader.setbacks.problem or (self.recorder.stuck and self.recorder.problem) or self._silent

    @property
    def setbacks(self) -> Sequence[Setbacks]:
        """What keeps parts from their work, beside the reader and the recorder."""
        parts = (
            self.retrier,
            self.follower,
            self.order_keeper,
            self.dispatcher.feeder,
            self.shots,
            self.replays,
            self.discards,
            self.statistics,
            self.polls,
        )
        return [part.setbacks for part in parts]

    # Its life.

    def start(self, parts: asyncio.TaskGroup) -> None:
        """Deliver, in tasks of this group, until `stop`."""
        self._ringing = parts.create_task(self._wakeup.run(self._subscriptions.me))
        self._recording = parts.create_task(self.recorder.run())
        self._dispatching = parts.create_task(self.dispatcher.run())
        self._shooting = parts.create_task(self.shots.run())
        self._summing = parts.create_task(self.statistics.run())
        self._polling = parts.create_task(self.polls.run())
        self._claiming = [parts.create_task(part.run()) for part in self._claimers]

    async def stop(self) -> None:
        """Claim nothing more, finish what is in flight, and write it down, in this order."""
        for part in (self.polls, *self._claimers, self.shots):
            part.stop()
        _, late = await asyncio.wait(self._claiming, timeout=CLAIM_SECONDS)
        for claim in late:
            claim.cancel()
        self._ringing.cancel()
        self.dispatcher.stop()
        await asyncio.wait([self._dispatching, self._shooting])
        self.recorder.stop()
        _, late = await asyncio.wait([self._recording], timeout=DRAIN_SECONDS)
        if late:
            # The database is away: what was sent and is not recorded will be sent once more.
            log.error("results_not_recorded", results=self.recorder.pending)
            self._recording.cancel()
        self.statistics.stop()
        await asyncio.wait([self._summing, self._polling])
