"""Which endpoints are parked: they read the log with a cursor of their own, and one daemon alone sends to them."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from webhookd.model import Window


class Parked(NamedTuple):
    """An endpoint that reads the batches [from_batch, to_batch) with a cursor; to_batch None: also those to come."""

    endpoint_id: int
    from_batch: int
    to_batch: int | None
    next_batch: int
    next_pos: int
    reason: str
    owner: int | None
    epoch: int
    fails: int  # its breaker's
    retry_in: float | None  # seconds
    paused: bool
    disabled: bool
    resumed_at: float  # the end of its last pause, on the database's clock; 0 when there was none
    idle: bool  # it is owed nothing new: inactive, or gone from the files
    deaths: int = 0  # of daemons that were its sender, since the cursor last moved

    @property
    def is_at_its_end(self) -> bool:
        """True when all of its batches are settled."""
        return self.to_batch is not None and self.next_batch >= self.to_batch

    @property
    def is_halted(self) -> bool:
        """True when nothing of it may be sent."""
        return self.paused or self.disabled


class Parking:
    """What is parked, as of `version`."""

    def __init__(self, version: int = -1, rows: Sequence[Parked] = ()) -> None:
        self.version = version
        self.rows = rows
        # Behind the newest boundary nothing changes, and that is where nearly every batch is.
        self._newest = max((max(row.from_batch, row.to_batch or 0) for row in rows), default=0)
        self._aside = self._of(self._newest)

    def by_cursor(self, batch: int) -> frozenset[int]:
        """The endpoints that get the events of this batch by their cursor."""
        return self._aside if batch >= self._newest else self._of(batch)

    def _of(self, batch: int) -> frozenset[int]:
        return frozenset(
            row.endpoint_id
            for row in self.rows
            if row.from_batch <= batch and (row.to_batch is None or batch < row.to_batch)
        )


def without_sender(rows: Iterable[Parked], me: int, sharers: Callable[[int], Collection[int]]) -> dict[int, bool]:
    """The endpoints, of those that have sharers, which none of these sends to; True where a part of it is ours.

    `sharers(endpoint id)` are the daemons that could, with us; none where we could not.
    """
    owners: dict[int, set[int | None]] = {}
    for row in rows:
        if not row.is_at_its_end and row.reason != "disabled":
            owners.setdefault(row.endpoint_id, set()).add(row.owner)
    found = {}
    for endpoint_id, of_it in owners.items():
        others = of_it - {me}
        if others and (able := sharers(endpoint_id)) and others.isdisjoint(able):
            found[endpoint_id] = me in of_it
    return found


Place = tuple[int, int, int, int]  # as the cursor has them: batch, pos, after, seen


class Cursor:
    """Where a parked endpoint that is ours has come to: `batch` and `pos` are what is handed out next.

    Where batches are read by the numbers of their events, several at once, `batch` is the first of them, and of those
    up to `seen` all events up to the number `after` are handed out.
    """

    __slots__ = (
        "after",
        "batch",
        "deaths",
        "endpoint_id",
        "epoch",
        "from_batch",
        "last",
        "pos",
        "resumed_at",
        "seen",
        "to_batch",
        "turn",
    )

    def __init__(self, row: Parked) -> None:
        self.endpoint_id = row.endpoint_id
        self.from_batch = row.from_batch
        self.epoch = row.epoch
        self.deaths = row.deaths
        self.batch, self.pos, self.after, self.seen = row.next_batch, row.next_pos, 0, 0
        self.last: Window | None = None
        self.turn = 0  # when it last handed out something, in turns of all cursors
        self.follow(row)

    def follow(self, row: Parked) -> None:
        """Go on as the row says now: it may end, it may have been paused, and retention may have moved it on."""
        self.to_batch = row.to_batch
        self.resumed_at = row.resumed_at
        if (row.next_batch, row.next_pos) > (self.batch, self.pos):
            self.batch, self.pos, self.after, self.seen = row.next_batch, row.next_pos, 0, 0

    @property
    def is_settled(self) -> bool:
        """True when all that it has handed out is settled, and the database knows."""
        return self.last is None or self.last.recorded

    def has_more(self, newest: int) -> bool:
        """True when there is a batch to read, `newest` being the last of the log."""
        return self.batch <= newest and (self.to_batch is None or self.batch < self.to_batch)

    @property
    def place(self) -> Place:
        """All of it."""
        return self.batch, self.pos, self.after, self.seen

    def move(self, batch: int, pos: int, after: int = 0, seen: int = 0) -> Window:
        """Go to this place; the window that leads there, open until everything in it is settled."""
        window = Window(self.endpoint_id, self.from_batch, self.epoch, batch, pos)
        if self.last is not None and self.last.open > 0:
            self.last.next = window
            window.open += 1
        self.last = window
        self.batch, self.pos, self.after, self.seen = batch, pos, after, seen
        return window


def in_turns(cursors: Iterable[Cursor], tenant: Callable[[int], str]) -> list[Cursor]:
    """In the order in which they may hand out: tenants in turns, and of each first whoever has waited longest.

    Of those that have waited alike, neighbours follow each other, since they read the same pages. `tenant(endpoint id)`
    is whose events an endpoint gets.
    """
    before: Counter[str] = Counter()
    served: dict[str, int] = {}
    turns: list[tuple[int, str, Cursor]] = []
    for cursor in sorted(cursors, key=lambda cursor: (cursor.turn, cursor.batch)):
        whose = tenant(cursor.endpoint_id)
        turns.append((before[whose], whose, cursor))
        before[whose] += 1
        served[whose] = cursor.turn  # the last is the latest
    return [cursor for _, _, cursor in sorted(turns, key=lambda turn: (turn[0], served[turn[1]]))]
