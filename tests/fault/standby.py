"""A primary and a streaming standby of it: what an asynchronous failover loses, lost on purpose.

    async with replicated(directory, 18) as pair:
        await pair.lag()        # the standby has what is there now; what is committed from now on never reaches it
        await pair.crash()      # the primary is gone, without a word
        await pair.promote()    # pair.standby is the primary now, on a timeline of its own

Both are in folders of `directory`, as webhookd.embedded keeps them.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

from tests.conftest import SETTINGS, connected, programs
from tests.waiting import until
from webhookd.cli.embedded import postgres

STREAMS = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
STAYS_AWAY = "ALTER SYSTEM SET primary_conninfo = ''"  # a paused replay would be made up for at the promotion


class Pair:
    """Two servers, by the DSNs of their databases `postgres`; the standby answers queries from the start."""

    def __init__(self, directory: Path, primary: str, standby: str, of_primary: ExitStack) -> None:
        self.primary = primary
        self.standby = standby
        self._data = directory / "primary" / "postgres"
        self._of_primary = of_primary

    async def lag(self) -> None:
        """Let the standby catch up with this moment, and get nothing any more."""
        async with connected(self.primary) as primary, connected(self.standby) as standby:
            now = await primary.fetchval("SELECT pg_current_wal_insert_lsn()::text")
            caught_up = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn"
            await until(lambda: standby.fetchval(caught_up, now), "the standby has caught up")
            await standby.execute(STAYS_AWAY)
            await standby.execute("SELECT pg_reload_conf()")
            gone = "SELECT count(*) = 0 FROM pg_stat_replication"
            await until(lambda: primary.fetchval(gone), "the standby is on its own")

    async def crash(self) -> None:
        """End the primary at once, if it still runs: nothing is flushed, and nobody is told."""
        with suppress(FileNotFoundError):
            pid = int((self._data / "postmaster.pid").read_text().split()[0])
            os.kill(pid, signal.SIGQUIT)
        await asyncio.to_thread(self._of_primary.close)

    async def promote(self) -> None:
        """Make the standby the primary; it takes writes when this returns."""
        async with connected(self.standby) as standby:
            assert await standby.fetchval("SELECT pg_promote(true, 60)")


@asynccontextmanager
async def replicated(directory: Path, version: int) -> AsyncIterator[Pair]:
    """Run a primary and a standby that streams from it; both end with the block."""
    there = programs(version)
    with ExitStack() as of_standby, ExitStack() as of_primary:
        primary = of_primary.enter_context(postgres(directory / "primary", bin_directory=there, settings=SETTINGS))
        standby = directory / "standby"
        await asyncio.to_thread(_back_up, primary, standby / "postgres", there)
        give_away(standby / "postgres", directory / "primary" / "postgres")
        pair = Pair(
            directory,
            primary,
            of_standby.enter_context(postgres(standby, bin_directory=there, settings=SETTINGS)),
            of_primary,
        )
        async with connected(primary) as sql:
            await until(lambda: sql.fetchval(STREAMS), "the standby streams")
        yield pair


def give_away(data: Path, like: Path) -> None:
    """Let the copy of a data directory belong to the account that the original belongs to."""
    owner = like.stat()
    for path in (data, *data.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)


def _back_up(primary: str, data: Path, there: Path) -> None:
    data.mkdir(mode=0o700, parents=True)
    arguments = ["--checkpoint=fast", "--no-sync", "--write-recovery-conf"]
    made = subprocess.run(
        [there / "pg_basebackup", "--dbname", primary, "--pgdata", data, *arguments], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
