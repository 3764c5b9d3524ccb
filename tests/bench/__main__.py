"""The benchmarks behind docs/performance.md: `python -m tests.bench [--json] [--long] [NAME …]`.

Ratios within one run, since machines differ and are noisy; each line says what it is compared with. Everything runs
on loopback, bounded in count and time. The exit code is 1 when a budget is missed.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import TypeAlias

import uvloop

from tests.bench import rig
from tests.bench.api import api
from tests.bench.cost import cost
from tests.bench.filters import filters
from tests.bench.flood import flood
from tests.bench.guarded import guarded
from tests.bench.held import held
from tests.bench.isolation import isolation
from tests.bench.latency import latency
from tests.bench.line import Line
from tests.bench.memory import memory
from tests.bench.ordered import ordered
from tests.bench.outage import outage
from tests.bench.parked import parked
from tests.bench.polling import polling
from tests.bench.producers import producers
from tests.bench.reading import reading
from tests.bench.redrive import redrive
from tests.bench.reload import reload
from tests.bench.restart import restart
from tests.bench.scrape import scrape
from webhookd.cli import logging

Bench: TypeAlias = Callable[[str], Awaitable[list[Line]]]
BENCHES: dict[str, Bench] = {
    "cost": cost,
    "guarded": guarded,
    "latency": latency,
    "memory": memory,
    "reload": reload,
    "restart": restart,
    "producers": producers,
    "held": held,
    "isolation": isolation,
    "parked": parked,
    "ordered": ordered,
    "outage": outage,
    "flood": flood,
    "api": api,
    "polling": polling,
    "filters": filters,
    "scrape": scrape,
}
LONG: dict[str, Bench] = {"held": partial(held, seconds=600.0), "redrive": redrive, "reading": reading}


async def run(server: str, benches: Iterable[Bench], shows: bool) -> list[Line]:
    """Run these benchmarks one after the other, and perhaps show the lines of each at its end."""
    lines = []
    for bench in benches:
        for line in await bench(server):
            lines.append(line)
            if shows:
                show(line)
    return lines


def show(line: Line) -> None:
    """Print it."""
    verdict = ("kept" if line.kept else "MISSED") + ("" if line.clear else ", by less than it varies")
    bound = ">=" if line.at_least else "<="
    print(f"{line.what:64} {line.value:10.3f} {line.unit:8} budget {bound} {line.budget:8.3f}  {verdict}", flush=True)


def main() -> int:
    """Print a table, and with --json the same as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(BENCHES)}; all without a name")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    parser.add_argument("--long", action="store_true", help="minutes instead of seconds for held, and redrive, reading")
    arguments = parser.parse_args()
    benches = BENCHES | LONG if arguments.long else BENCHES
    logging.configure("info", "console")  # as the service does: a line for each success would be measured, too
    with rig.server() as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        wanted = [benches[name] for name in arguments.names or benches]
        lines = runner.run(run(server, wanted, shows=not arguments.json))
    if arguments.json:
        print(json.dumps([asdict(line) | {"kept": line.kept} for line in lines], indent=2))
    return 0 if all(line.kept for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
