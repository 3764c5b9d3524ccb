"""What commands print with --json, and the HTTP API answers: the same documents."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import orjson

from webhookd.model import Event
from webhookd.policy.matching import NO_PAYLOAD, Subscriber
from webhookd.store.audit import Deed
from webhookd.store.discards import Discarded
from webhookd.store.listings import ASIDE
from webhookd.store.replays import Replayed
from webhookd.store.reports import Fate, Status
from webhookd.store.shots import Ended, Resent

COUNTS: Final = ("waiting", "retrying", "held", "parked", "exhausted", "rejected", "missed")  # of a backlog and the log
UNKNOWN: Final = "filter: this role may not read metadata, so that it may pass or not"


class Explained(NamedTuple):
    """An event, what became of it, and what the files say about it; `reasons` has None for who gets it."""

    event: Event
    fates: Sequence[Fate]
    reasons: Sequence[tuple[Subscriber, str | None]]
    resent: Sequence[Resent] = ()
    replayed: Sequence[Replayed] = ()
    discarded: Sequence[Discarded] = ()

    @property
    def unreadable(self) -> bool:
        """True when no daemon could read it, so that nobody gets it."""
        return any(fate.state == "unreadable" for fate in self.fates)


def status(found: Status, problems: Iterable[str]) -> dict[str, Any]:
    """How things stand, and what is wrong in sentences."""
    delivered, failed = last_minute(found)
    return {
        "waiting": {"events": found.waiting.events, "oldest_seconds": found.waiting.seconds},
        "scheduled": {"events": found.scheduled.events, "first_due_seconds": found.scheduled.seconds},
        "open_batches": {
            "batches": found.open.batches,
            "events": found.open.events,
            "oldest_seconds": found.open.seconds,
        },
        "database": {
            "bytes": found.health.bytes,
            "oldest_event_seconds": found.health.oldest_event,
            "oldest_owed_seconds": found.health.owed,
            "cursor_seconds": found.health.cursor,
            "days_ahead": found.health.days_ahead,
            "rows_in_default": found.health.rows_in_default,
            "unreadable_events": found.health.unreadable,
        },
        "last_day": {"exhausted_deliveries": found.health.exhausted, "exhausted_ranges": found.health.missed},
        "problems": list(problems),
        "daemons": [
            {
                "id": daemon.id,
                "host": daemon.host,
                "version": daemon.version,
                "config_hash": daemon.config_hash,
                "config_problem": daemon.config_problem,
                "problem": daemon.problem,
                "beat_seconds": daemon.seconds,
            }
            for daemon in found.daemons
        ],
        "configurations_differ": differ(found),
        "endpoints": [
            {
                "tenant": owed.tenant,
                "name": owed.name,
                "state": owed.state,
                "backlog": {key: getattr(owed, key) for key in COUNTS},
                "undecided": owed.undecided,
                "more": {key: getattr(owed, f"{key}_more") for key in ASIDE},
                "next_try_seconds": owed.due_in,
                "fed": "parked" if owed.has_cursor else "live",
                "behind_seconds": owed.behind,
                "last_minute": {"delivered": owed.delivered, "failed": owed.failed},
            }
            for owed in found.endpoints
        ],
        "last_minute": {
            "delivered": delivered,
            "failed": failed,
        },
    }


def differ(found: Status) -> bool:
    """True when daemons do not run the same configuration."""
    return len({daemon.config_hash for daemon in found.daemons}) > 1


def last_minute(found: Status) -> tuple[int, int]:
    """Deliveries and failed attempts of the last minute."""
    return sum(owed.delivered for owed in found.endpoints), sum(owed.failed for owed in found.endpoints)


def explained(found: Explained) -> dict[str, Any]:
    """Who gets an event, who does not and why, and what became of it."""
    event = found.event
    document: dict[str, Any] = {
        "type": event.type,
        "tenant": event.tenant,
        "endpoints": [
            {
                "endpoint": each.label,
                "gets_it": None if why in (UNKNOWN, NO_PAYLOAD) else not why and not found.unreadable,
                "why_not": why,
            }
            for each, why in found.reasons
        ],
    }
    if event.id:
        document |= {
            "event_id": event.event_id,
            "created_at": event.created_at.isoformat(),
            "status": [
                {
                    "endpoint": fate.endpoint,
                    "state": fate.state,
                    "attempts": fate.attempts,
                    "last_code": fate.code,
                    "last_error": fate.error,
                    "next_try_seconds": fate.due_in,
                }
                for fate in found.fates
            ],
            "resent": [each._asdict() for each in found.resent],
            "replayed": [each._asdict() for each in found.replayed],
            "discarded": [each._asdict() for each in found.discarded],
        }
    return document


def deed(deed: Deed) -> dict[str, Any]:
    """What somebody has done."""
    sides = {key: None if (side := getattr(deed, key)) is None else orjson.loads(side) for key in ("before", "after")}
    return {**deed._asdict(), **sides}


def tested(started_at: datetime, tests: Sequence[tuple[str, Ended]]) -> dict[str, Any]:
    """What came of tests, each with the type of its example."""
    failed = sum(not ended.ok for _, ended in tests)
    counts = {"testsRun": len(tests), "testsSucceeded": len(tests) - failed, "testsFailed": failed}
    shown = [_tested(type_, ended) for type_, ended in tests]
    return {"data": {"startedAt": started_at, **counts, "tests": shown}, "error": None}


def _tested(type_: str, ended: Ended) -> dict[str, Any]:
    body = None if ended.response is None else ended.response.decode(errors="replace")
    return {
        "event": type_,
        "ok": ended.ok,
        "status": ended.code,
        "latencyMs": ended.ms,
        "error": ended.error,
        "request": None if ended.request is None else orjson.loads(ended.request),
        "response": None if ended.code is None else {"status": ended.code, "body": body},
    }
