"""A daemon to be killed, stopped, frozen or broken: `python -m tests.fault.process CONFIG.toml [--broken no_rescue]`.

SIGTERM stops it in order. It tells `ready ID` on stdout and logs on stderr. Its pace is an argument, which the real
command does not have.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import uvloop

from webhookd.config import loader
from webhookd.daemon.daemon import Daemon
from webhookd.engine import janitor, neighbours, recorder, retrier
from webhookd.engine.dispatch import dispatcher
from webhookd.engine.dispatch.scheduler import Scheduler
from webhookd.engine.engine import Intervals
from webhookd.engine.intake import polling, reader
from webhookd.exchange import Request
from webhookd.message import request
from webhookd.model import Batch, Delivery
from webhookd.policy import breaker
from webhookd.store import database, results, wakeup
from webhookd.store.batches import Batches
from webhookd.store.database import Database
from webhookd.store.statements import QUERIES

DEADLY = "deadly"  # the id of an event that kills whoever tries it
BROKEN = ("no_rescue", "no_ledger", "no_fence", "no_place")
DATABASE_TIMES = (
    (database, "COMMAND_TIMEOUT"),
    (database, "CONNECT_TIMEOUT"),
    (wakeup, "RECONNECT_AFTER"),
    (wakeup, "ANSWER_WITHIN"),
    (wakeup, "CHECK_AFTER"),
)


def pace(factor: float, patience: float | None) -> Intervals:
    """The normal pace times `factor`; flushes stay as they are, because they bound what a kill resends."""
    return Intervals(
        beat=janitor.BEAT_SECONDS * factor,
        rescue=reader.RESCUE_SECONDS * factor,
        look=retrier.LOOK_SECONDS * factor,
        flush=recorder.FLUSH_SECONDS,
        patience=patience or dispatcher.PATIENCE * factor,
        neighbours=neighbours.LOOK_SECONDS * factor,
    )


def break_it(how: str) -> None:
    """Take one of its safeguards out of the daemon."""
    if how == "no_rescue":
        setattr(Batches, "adopt", _adopt_nothing)  # noqa: B010 - mypy knows no other way to break a class
    elif how == "no_ledger":
        setattr(Batches, "known", _know_nothing)  # noqa: B010 - the same
    elif how == "no_place":
        setattr(Database, Database._same_place.__name__, _anywhere)
    else:
        unfenced = {
            **QUERIES,
            "batch_done": _without(
                QUERIES["batch_done"],
                "AND b.nonce = u.nonce AND b.claims = u.claims AND b.owner = $4",
                "AND $4::int IS NOT NULL",
            ),
            "backlog_update": _without(QUERIES["backlog_update"], "AND d.attempts = u.a ", ""),
        }
        setattr(results, "QUERIES", unfenced)  # noqa: B010 - the same


def _deadly(build: Callable[..., Request]) -> Callable[..., Request]:
    def made(delivery: Delivery, *rest: Any) -> Request:
        if delivery.event.event_id == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        return build(delivery, *rest)

    return made


async def _adopt_nothing(
    _self: Batches, owner: int, low: int, mine: Iterable[int], *, steady_until: float, dead_after: float, most: int
) -> list[Batch]:
    return []


async def _know_nothing(_self: Batches, batch: Batch) -> set[tuple[int, int]]:
    return set()


async def _anywhere(_self: Database, _connection: object, _first: str) -> None:
    return None


def _scheduler(aside: float, *, aside_after: float) -> Scheduler:
    return Scheduler(aside_after=aside)


def _without(statement: str, fence: str, instead: str) -> str:
    if fence not in statement:
        raise SystemExit(f"the statement has changed, so there is nothing to break: {fence}")
    return statement.replace(fence, instead)


async def run(config_file: Path, at_pace: Intervals) -> None:
    """Deliver until told to stop."""
    config = loader.load(config_file, os.environ)

    def ready(daemon_id: int) -> None:
        sys.stdout.write(f"ready {daemon_id}\n")
        sys.stdout.flush()

    direct_dsn = config.database.direct_dsn.get_secret_value() or None
    daemon = Daemon(config, loader.dsn(config.database, config_file), direct_dsn, intervals=at_pace, on_ready=ready)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, daemon.stop)
    await daemon.run()


def main() -> None:
    """Run it with the arguments of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--broken", choices=BROKEN)
    parser.add_argument("--pace", type=float, default=0.1, help="1 is the normal pace; a tenth is the default")
    parser.add_argument("--lease-margin", type=float, help="seconds; by default the normal ones at the same pace")
    parser.add_argument("--patience", type=float, help="seconds; by default the normal ones at the same pace")
    parser.add_argument(
        "--aside-after", type=float, help="seconds until an attempt without an answer gives its slot away"
    )
    parser.add_argument("--poll", type=float, help="seconds until who was not woken looks; by default the normal ones")
    parser.add_argument(
        "--database-pace", type=float, default=1.0, help="of the times it waits for an answer of Postgres"
    )
    arguments = parser.parse_args()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    # Leases are no part of the pace, and a lease of 25 s beside a death of 1.5 s is out of proportion.
    margin = arguments.lease_margin or dispatcher.LEASE_MARGIN * arguments.pace
    retrier.START_MARGIN *= margin / dispatcher.LEASE_MARGIN
    dispatcher.LEASE_MARGIN = margin
    # How long they wait for a database that is away must stay short beside a lease, too.
    recorder.RETRY_MOST *= arguments.pace
    reader.AWAY_MOST *= arguments.pace
    retrier.AWAY_SECONDS *= arguments.pace
    breaker.PROBE_FIRST *= arguments.pace
    breaker.PROBE_MOST *= arguments.pace
    if arguments.aside_after:
        setattr(dispatcher, "Scheduler", partial(_scheduler, arguments.aside_after))  # noqa: B010 - mypy knows no other way
    if arguments.poll:
        polling.NAP = polling.POLL_FIRST = polling.POLL_MOST = arguments.poll
    for module, name in DATABASE_TIMES:
        setattr(module, name, getattr(module, name) * arguments.database_pace)
    request.build = _deadly(request.build)
    if arguments.broken:
        break_it(arguments.broken)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(arguments.config, pace(arguments.pace, arguments.patience)))


if __name__ == "__main__":
    main()
