"""A PostgreSQL that a test has for itself: it may be stopped in any way, and started again."""

import os
import shutil
import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.conftest import DEBIAN_15, SETTINGS
from webhookd.cli.embedded import postgres

MOST_CONNECTIONS = 40


class Server:
    """`with Server(18) as server`: it runs inside, unless it was stopped. Each start may give another `dsn`."""

    def __init__(self, version: int) -> None:
        self.dsn = ""
        self._version = version
        # Not tmp_path: as root that is closed to the account that runs the server.
        self._directory = Path(tempfile.mkdtemp(prefix="webhookd-tests-"))
        self._directory.chmod(0o755)
        self._running = ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()
        shutil.rmtree(self._directory)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = {**SETTINGS, "max_connections": str(MOST_CONNECTIONS)}
        programs = DEBIAN_15 if self._version == 15 else None
        self.dsn = self._running.enter_context(
            postgres(self._directory, self._version, settings, bin_directory=programs)
        )

    def stop(self, how: signal.Signals) -> None:
        """Stop it: SIGINT is what Postgres calls fast, SIGQUIT is immediate, after which it recovers from its log."""
        os.kill(int((self._directory / "postgres" / "postmaster.pid").read_text().split()[0]), how)
        self._running.close()
