"""Counts what was recorded, once it is in the database."""

from typing import Final

from webhookd.model import Delivered, Ended, Postponed, Result
from webhookd.tally import Tally

APART: Final = ("discarded", "unwanted")  # why they were rejected, where nothing is wrong with them


def count(tally: Tally, result: Result) -> None:
    """One result more. An attempt that is none, since it was put off for a fault of ours, counts as put off."""
    delivery, attempt, outcome = result
    if attempt is not None:
        ok, seconds = attempt.ok, attempt.ms / 1000.0
        tally.attempts[ok, attempt.error if attempt.code is None else attempt.code] += 1
        tally.answers.observe(seconds)
        if tally.endpoints is not None:
            of = tally.endpoints.get(delivery.endpoint.id)
            if of is None:
                of = tally.endpoints[delivery.endpoint.id] = [0, 0]
            of[ok] += 1
        if ok:
            tally.deliveries["delivered"] += 1
            tally.lags.observe(max(attempt.at + seconds - delivery.clock_from, 0.0))
            return
    if isinstance(outcome, Ended):
        tally.deliveries[outcome.reason if outcome.reason in APART else outcome.state] += 1
    elif isinstance(outcome, Delivered):  # whose attempt the table would not take
        tally.deliveries["delivered"] += 1
    elif isinstance(outcome, Postponed):
        tally.spills += 1
