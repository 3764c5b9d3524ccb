"""The benchmarks behind docs/performance.md: `python -m tests.bench [--json] [NAME …]`.

Ratios within one run, since machines differ and are noisy; each line says what it is compared with. Everything runs
on loopback, bounded in count and time. The exit code is 1 when a budget is missed.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

import structlog
import uvloop

from tests.bench import rig
from tests.bench.cost import cost
from tests.bench.latency import latency
from tests.bench.memory import memory
from tests.bench.reload import reload


@dataclass(frozen=True, slots=True)
class Line:
    """One measured figure, and the budget it is held against."""

    what: str
    value: float
    unit: str
    budget: float

    @property
    def kept(self) -> bool:
        return self.value <= self.budget


BENCHES: dict[str, Callable[[str], Awaitable[list[tuple[str, float, str, float]]]]] = {
    "cost": cost,
    "latency": latency,
    "memory": memory,
    "reload": reload,
}


async def run(server: str, names: list[str]) -> list[Line]:
    """Run these benchmarks one after the other."""
    return [Line(*line) for name in names for line in await BENCHES[name](server)]


def main() -> int:
    """Print a table, and with --json the same as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(BENCHES)}; all without a name")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    arguments = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    with rig.server() as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        lines = runner.run(run(server, arguments.names or list(BENCHES)))
    if arguments.json:
        print(json.dumps([asdict(line) | {"kept": line.kept} for line in lines], indent=2))
    else:
        for line in lines:
            verdict = "kept" if line.kept else "MISSED"
            print(f"{line.what:64} {line.value:10.3f} {line.unit:8} budget {line.budget:8.3f}  {verdict}")
    return 0 if all(line.kept for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
