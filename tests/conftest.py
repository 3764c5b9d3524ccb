"""A PostgreSQL of the tests' own, and a fresh migrated database for each test that asks for one.

pytest --postgres 18|16|15   which server (15 is Debian's, the others come with the `test` extra)
pytest --long                the tests marked `long`, too
"""

import asyncio
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

import asyncpg
import hypothesis
import pytest
import uvloop

from tests.planted import question as planted_question
from tests.planted import said_in
from webhookd.cli import embedded
from webhookd.cli.embedded import postgres
from webhookd.store.migrations import migrate

T = TypeVar("T")
hypothesis.settings.register_profile("webhookd", deadline=None)  # on a busy machine any single example may take long
hypothesis.settings.register_profile("few", deadline=None, max_examples=20)  # where the same has been asked before
hypothesis.settings.load_profile("webhookd")
# A shell lets what runs in its background ignore Ctrl-C, and so would the commands that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.pop("COLUMNS", None)  # pytest-xdist says 80 in it, and commands would keep to that
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
SETTINGS = {"max_connections": "200", "fsync": "off", "full_page_writes": "off"}  # nothing here outlives the session
LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--postgres", choices=("18", "16", "15"), default="18", help="version of the PostgreSQL server")
    parser.addoption("--long", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Unit tests run on both loops, others on the one we ship; `@pytest.mark.asyncio(loop_factories=[...])` chooses."""
    marker = item.get_closest_marker("asyncio")
    if "unit" in item.path.parts or (marker and "loop_factories" in marker.kwargs):
        return LOOPS
    return {"uvloop": LOOPS["uvloop"]}


def run(asking: Callable[["asyncpg.Connection[asyncpg.Record]"], Awaitable[T]], dsn: str) -> T:
    """What `asking` gets from a connection of its own, from code that is not async."""

    async def main() -> T:
        async with connected(dsn) as connection:
            return await asking(connection)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # asyncio.run would take the test's loop away
        return runner.run(main())


def execute(dsn: str, statement: str) -> None:
    """Run one statement on a connection of its own, from code that is not async."""
    run(lambda connection: connection.execute(statement), dsn)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test in whose log a secret came up has failed."""
    report = yield
    if report.passed and (lines := said_in(report.capstdout, report.capstderr, report.caplog)):
        report.outcome = "failed"
        report.longrepr = "a secret came up in the log:\n" + "\n".join(lines)
    return report


def programs(version: int) -> Path:
    """Where the programs of that PostgreSQL are."""
    return DEBIAN_15 if version == 15 else embedded._programs(version)


def database(server: str, name: str) -> str:
    """The DSN of another database of the same server."""
    return server.replace("/postgres?", f"/{name}?")


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection for the block."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory for servers. Not tmp_path: as root that is closed to the account that runs them."""
    directory = Path(tempfile.mkdtemp(prefix="webhookd-tests-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def version(pytestconfig: pytest.Config) -> int:
    """Of the PostgreSQL that the tests run on."""
    return int(pytestconfig.getoption("--postgres"))


@pytest.fixture(scope="session")
def server(version: int) -> Iterator[str]:
    """The DSN of the database `postgres` on a server that lives for the session (of each xdist worker)."""
    with open_directory() as directory, postgres(directory, bin_directory=programs(version), settings=SETTINGS) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def template(server: str) -> str:
    """The name of a migrated database to copy."""
    execute(server, "CREATE DATABASE template_webhookd")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(migrate(database(server, "template_webhookd")))
    return "template_webhookd"


_numbers = itertools.count(1)


@pytest.fixture
def empty_dsn(server: str) -> Iterator[str]:
    """The DSN of an empty database of this test's own."""
    name = f"empty_{next(_numbers)}"
    execute(server, f"CREATE DATABASE {name} TEMPLATE template0")
    yield database(server, name)
    execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def planted(server: str, template: str) -> str:
    """The query that names the tables in which a secret has come up."""
    return run(planted_question, database(server, template))


@pytest.fixture
def dsn(server: str, template: str, planted: str) -> Iterator[str]:
    """The DSN of a migrated database of this test's own; no table of it may hold a secret in the end."""
    name = f"test_{next(_numbers)}"
    execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    made = database(server, name)
    yield made
    try:
        tables = run(lambda connection: connection.fetch(planted), made)
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.InvalidSchemaNameError):
        tables = []  # the test has taken the schema apart
    execute(server, f"DROP DATABASE {name} WITH (FORCE)")
    assert not tables, f"a secret came up in {[table for (table,) in tables]}"


@pytest.fixture
async def sql(dsn: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection to that database; json comes as text, as the application wrote it."""
    async with connected(dsn) as connection:
        yield connection
