"""Applications that insert: pgbench, which the wheel brings, with one statement a transaction."""

import asyncio
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.bench import rig
from webhookd.cli.embedded import _programs

PROGRAM = _programs(18) / "pgbench"


class Transaction(NamedTuple):
    """One transaction: when it ended, as of time.time(), and how long it took."""

    ended: float
    seconds: float


async def pgbench(dsn: str, statement: str, *, clients: int, seconds: float, rate: float = 0.0) -> list[Transaction]:
    """Run `statement` for so long, as fast as these clients can or so many a second; its transactions by their end."""
    with tempfile.TemporaryDirectory(prefix="webhookd-bench-") as directory:
        script = Path(directory) / "script.sql"
        script.write_text(statement + ";\n")
        # Prepared, as drivers do, which also leaves least of an INSERT to hide a cost behind.
        arguments = [f"--client={clients}", f"--time={seconds:.0f}", "--no-vacuum", "--protocol=prepared"]
        arguments += [f"--file={script}", "--log", f"--log-prefix={directory}/log"]
        arguments += [f"--rate={rate}"] if rate else []
        async with rig.program(str(PROGRAM), *arguments, dsn) as child, asyncio.timeout(seconds + 60):
            await child.communicate()
        if child.returncode:
            raise RuntimeError(f"pgbench ended with {child.returncode}")
        return _transactions(Path(directory))


def _transactions(directory: Path) -> list[Transaction]:
    (log,) = directory.glob("log.*")
    return sorted(_transaction(line.split()) for line in log.read_text().splitlines())


def _transaction(columns: list[str]) -> Transaction:
    # client, number, time, script, epoch, microseconds, and with a rate by how much of `time` it began too late
    late = int(columns[6]) if len(columns) > 6 else 0
    return Transaction(int(columns[4]) + int(columns[5]) / 1e6, (int(columns[2]) - late) / 1e6)
