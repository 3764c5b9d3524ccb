"""All metrics by name, with what they mean. Names stay: dashboards and alerts of others depend on them.

What a daemon counts, each counts for itself: `sum` them. What the database says, each daemon says alike: `max`.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from webhookd import __version__
from webhookd.metrics.exposition import Family, Sample, by, escaped, histogram, labels, one
from webhookd.metrics.process import process
from webhookd.store.overview import Each, Health, Overview
from webhookd.store.translation import KINDS
from webhookd.tally import Histogram, Tally

RESULTS: Final = ("delivered", "exhausted", "rejected", "discarded", "unwanted")
ALIKE: Final = "The database says it, every daemon alike: use max, never sum."
STATUSES: Final = range(100, 600)  # of HTTP; what else a receiver makes up is one
NO_ROWS: Final[dict[str, float]] = dict.fromkeys(("waiting", "retrying", "held", "exhausted", "rejected", "parked"), 0)


class Reading(NamedTuple):
    """What the parts of a daemon are at now; all of it nothing while there are none."""

    ready: bool = False
    in_flight: int = 0
    slots_in_use: int = 0
    in_flight_limit: int = 0
    recorder_queue: int = 0
    poll_consumers: int = 0
    log_lines_dropped: int = 0
    loop_lag: float = 0.0
    config_hash: str = ""
    reload_refused: bool = False
    loaded_at: float = 0.0  # seconds since 1970


def families(
    tally: Tally, now: Reading, health: Health | None, found: Overview | None, ages: Mapping[str, float]
) -> Iterator[Family]:
    """What does not grow with the number of endpoints. `ages`: seconds since the database said so, by part."""
    yield from _deliveries(tally)
    yield from _now(now)
    yield from _health(tally, now)
    seen = "Seconds since the database answered: the view, and the rest, which may take longer."
    yield _gauge("database_seen_age_seconds", seen, by("part", ages))
    if health is not None:
        yield from _view(health)
    if found is not None:
        yield from _rest(found)
    yield from _api(tally)
    yield from process()


def of_endpoints(tally: Tally, last: Overview, *, is_old: bool) -> Iterator[Family]:
    """What grows with the number of endpoints: up to six lines of each, of an old look what we count ourselves."""
    each = last.endpoints
    attempts = _attempts_of(tally, each)
    yield _counter("endpoint_attempts_total", "Attempts of this daemon, by endpoint and outcome.", attempts)
    if is_old:
        return
    owed = ((_named(e), e.owed) for e in each)
    least = (
        "Deliveries that an endpoint is still owed, but those in memory; at least: behind a cursor some are counted."
    )
    yield _alike("endpoint_owed", least, owed)
    ages = ((_named(e), max(e.oldest or 0.0, 0.0)) for e in each)
    yield _alike("endpoint_oldest_owed_age_seconds", "The age of the oldest of these.", ages)
    behind = ((_named(e), e.behind) for e in each if e.behind is not None)
    yield _alike("endpoint_cursor_age_seconds", "By how much its cursor lags, where something may wait there.", behind)
    states = ((_named(e, state=e.state), 1) for e in each)
    yield _alike("endpoint_state", "1 with the state that it has.", states)


def _counter(name: str, help_: str, samples: Iterable[Sample] | float) -> Family:
    return Family(f"webhookd_{name}", "counter", help_, one(samples) if isinstance(samples, (int, float)) else samples)


def _gauge(name: str, help_: str, samples: Iterable[Sample] | float | None) -> Family:
    is_one = samples is None or isinstance(samples, (int, float))
    return Family(f"webhookd_{name}", "gauge", help_, one(samples) if is_one else samples)  # type: ignore[arg-type]


def _alike(name: str, help_: str, samples: Iterable[Sample] | float | None) -> Family:
    return _gauge(name, f"{help_} {ALIKE}", samples)


def _histogram(name: str, help_: str, of: Histogram) -> Family:
    return histogram(f"webhookd_{name}", help_, of)


def _deliveries(tally: Tally) -> Iterator[Family]:
    attempts = "Requests that were made and recorded, by outcome, and by status or code."
    yield _counter("attempts_total", attempts, _attempts(tally))
    deliveries = {result: tally.deliveries[result] for result in RESULTS}
    yield _counter("deliveries_total", "Deliveries that have ended, by what became of them.", by("result", deliveries))
    missed = "Ranges of the log that were given up behind endpoints that failed, or pollers; each counts as one."
    yield _counter("missed_events_total", missed, tally.missed_events)
    yield _counter("events_read_total", "Events that were read from the outbox.", tally.events_read)
    took = "From the lookup of the name to the answer, of each attempt."
    yield _histogram("attempt_duration_seconds", took, tally.answers)
    lag = "From when the time of a delivery began, most often as its event was read, until it was delivered."
    yield _histogram("delivery_lag_seconds", lag, tally.lags)


def _attempts(tally: Tally) -> list[Sample]:
    counts: Counter[tuple[str, str]] = Counter()
    for (ok, code), count in list(tally.attempts.items()):
        known = str(code) if not isinstance(code, int) or code in STATUSES else "other"
        counts["delivered" if ok else "failed", known] += count
    return [(labels(outcome=outcome, code=code), count) for (outcome, code), count in counts.items()]


def _now(now: Reading) -> Iterator[Family]:
    yield _gauge("ready", "1 while it delivers, as /readyz says.", int(now.ready))
    yield _gauge("in_flight", "Attempts that are under way.", now.in_flight)
    yield _gauge("slots_in_use", "Of these, those that have a slot: they have not waited for long.", now.slots_in_use)
    yield _gauge("in_flight_limit", "How many slots there are: [delivery] max_in_flight.", now.in_flight_limit)
    yield _gauge("recorder_queue", "Results that wait to be written.", now.recorder_queue)
    yield _gauge("poll_consumers", "Pollers that wait for events at this moment.", now.poll_consumers)


def _health(tally: Tally, now: Reading) -> Iterator[Family]:
    late = "By how much the event loop came late at most within the last minute."
    yield _gauge("loop_lag_seconds", late, now.loop_lag)
    yield _counter("rescues_total", "Batches that were taken over from daemons that ended or stopped.", tally.rescues)
    spills = "Deliveries that were put into the backlog without an attempt."
    yield _counter("spills_total", spills, tally.spills)
    yield _counter("unreadable_events_total", "Events that it found unreadable.", tally.unreadable_events)
    errors = {kind: tally.database_errors[kind] for kind in KINDS}
    unanswered = "Questions to the database that ended with an error, by kind."
    yield _counter("database_errors_total", unanswered, by("kind", errors))
    yield _histogram("pool_wait_seconds", "Until a connection to the database was there.", tally.pool_waits)
    connections = {"false": tally.connections_opened, "true": tally.connections_kept}
    sent_on = "Connections to receivers that a request was sent on: new ones, and ones that were kept."
    yield _counter("connections_total", sent_on, by("reused", connections))
    yield _counter("log_lines_dropped_total", "Lines of the log that nobody read in time.", now.log_lines_dropped)
    refused = "0 while the files are refused and the old configuration goes on."
    yield _gauge("config_last_reload_successful", refused, int(not now.reload_refused))
    taken = "When the configuration that runs was taken, in seconds since 1970."
    yield _gauge("config_last_reload_success_timestamp_seconds", taken, now.loaded_at or None)
    yield _gauge("config_info", "The hash of the configuration that runs.", [(labels(hash=now.config_hash), 1)])
    versions = labels(version=__version__, python=sys.version.split()[0])
    yield _gauge("build_info", "The versions of webhookd and Python.", [(versions, 1)])


def _rest(found: Overview) -> Iterator[Family]:
    states = {str(state): count for state, count in found.states.items() if state != "removed"}
    yield _alike("endpoints", "Endpoints by state.", by("state", states))
    rows = "Deliveries that have a row, by state; parked: of the events of the log that wait behind cursors, some."
    yield _alike("backlog", rows, by("state", {**NO_ROWS, **found.backlog}))
    yield _alike("outbox_bytes", "What the outbox takes, with its indexes.", found.outbox_bytes)


def _view(health: Health) -> Iterator[Family]:
    yield _alike("unread_events", "Committed events that nobody has read yet.", health["unread_events"])
    yield _alike("unread_age_seconds", "The age of the oldest of these.", health["unread_seconds"] or 0.0)
    yield _alike("scheduled_events", "Events that are to be delivered later.", health["scheduled_events"])
    owed = "The age of the oldest event that an endpoint is owed which is sent to: active or failing."
    yield _alike("oldest_owed_age_seconds", owed, health["late_seconds"] or 0.0)
    cursors = "By how much the last of the cursors lags, whatever is there."
    yield _alike("cursor_age_seconds", cursors, health["cursor_seconds"] or 0.0)
    yield _alike("batches_open", "Batches whose events are not all sent and recorded.", health["open_batches"])
    yield _alike("exhausted_last_hour", "Deliveries that were given up within an hour.", health["exhausted_last_hour"])
    yield _alike("missed_last_hour", "Ranges of the log, likewise.", health["missed_last_hour"])
    yield _alike("unreadable_rows", "Events of the outbox that could not be read.", health["unreadable_events"])
    yield _alike("daemons", "Daemons that are alive.", health["live_daemons"])
    yield _alike("configurations", "Different configurations among them; 1 is right.", health["configurations"])
    held = "How long the oldest transaction has been open, as far as the owner of the schema may see."
    yield _alike("held_snapshot_age_seconds", held, health["snapshot_seconds"] or 0.0)
    yield _alike("tables_bytes", "What all tables of the schema take, with their indexes.", health["bytes"])
    default = "Rows in a DEFAULT partition, where none should be."
    yield _alike("default_partition_rows", default, health["rows_in_default"])
    yield _alike("partition_days_ahead", "Days for which there are partitions.", health["days_ahead"])


def _api(tally: Tally) -> Iterator[Family]:
    counts = list(tally.requests.items())
    requests = [(labels(operation=name, status=str(status)), count) for (name, status), count in counts]
    answered = "Requests to the API that were answered, by operation (none: no operation of ours) and status."
    yield _counter("api_requests_total", answered, requests)
    took = "Of each of these, but of those that wait for events."
    yield _histogram("api_request_duration_seconds", took, tally.request_seconds)


def _attempts_of(tally: Tally, endpoints: tuple[Each, ...]) -> Iterator[Sample]:
    counts, none = tally.endpoints or {}, [0, 0]
    for each in endpoints:
        failed, delivered = counts.get(each.id, none)
        yield _named(each, outcome="delivered"), delivered
        yield _named(each, outcome="failed"), failed


def _named(each: Each, **more: str) -> str:
    behind = "".join(f',{name}="{value}"' for name, value in more.items())
    return f'{{tenant="{escaped(each.tenant)}",endpoint="{escaped(each.name)}"{behind}}}'
