"""The commands, run as a user runs them."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from typer.main import get_command

from tests.waiting import HANGS, until
from webhookd import __version__
from webhookd.cli.main import COMMANDS, app
from webhookd.cli.receiver import Received, local_receiver
from webhookd.store.statements import MIGRATIONS

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
PLAIN = {  # without what says where, and how wide the terminal is
    key: text
    for key, text in os.environ.items()
    if not key.startswith(("WEBHOOKD_", "PG")) and key not in ("COLUMNS", "LINES")
}


def webhookd(
    *arguments: object, env: Mapping[str, str] | None = None, stdin: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "webhookd", *map(str, arguments)],
        env={**PLAIN, **(env or {})},
        input=stdin,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def fails(found: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    assert found.returncode == code, found.stderr
    assert found.stdout == ""
    assert "Traceback" not in found.stderr
    for part in parts:
        assert part in found.stderr


def configuration(folder: Path, dsn: str, url: str = "http://127.0.0.1:9/hook") -> Path:
    file = folder / "webhookd.toml"
    file.write_text(
        f"""
[database]
dsn = "{dsn}"
[egress]
allow_http = true
allow_networks = ["127.0.0.0/8"]
[endpoint.orders]
url = "{url}"
events = ["order.*"]
signature = "none"
"""
    )
    return file


@asynccontextmanager
async def running(
    config: Path, *options: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[dict[str, Any]]]]:
    """`webhookd run`, and its log as it comes."""
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "webhookd", "run", "-c", config, *options, stdout=PIPE, stderr=PIPE, env=PLAIN
    )
    log: list[dict[str, Any]] = []

    async def read() -> None:
        assert daemon.stderr is not None
        async for line in daemon.stderr:
            if options and not line.startswith(b"{"):
                continue  # what --dev says before there is a log
            log.append(json.loads(line))

    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(read())
        try:
            yield daemon, log
            await asyncio.wait_for(daemon.wait(), HANGS)
            await reading
        finally:
            if daemon.returncode is None:
                daemon.kill()
                await daemon.wait()


def said(log: list[dict[str, Any]], event: str) -> dict[str, Any]:
    """The first line of the log about it, or nothing yet."""
    return next((line for line in log if line["event"] == event), {})


def status(config: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(webhookd("status", "--json", "-c", config).stdout)
    return found


def test_version_help_and_what_does_not_exist() -> None:
    assert webhookd("--version").stdout == f"webhookd {__version__}\n"
    assert "migrate" in webhookd("--help").stdout
    fails(webhookd("migrat"), 2, "No such command 'migrat'")
    fails(webhookd("status", "--jsn"), 2, "--jsn")
    fails(webhookd("emit", "order.created"), 2, "PAYLOAD")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("listen", "--port", "70000"), "Invalid value for '--port': must be at most 65535"),
        (("listen", "--port", "-1"), "Invalid value for '--port': must be at least 0"),
        (("listen", "--status", "abc"), "Invalid value for '--status': wants a whole number"),
        (("events", "--limit", "1.5"), "Invalid value for '--limit': wants a whole number"),
        (("demo", "--rate", "fast"), "Invalid value for '--rate': wants a number"),
        (("demo", "--rate", "nan"), "Invalid value for '--rate': "),
        (("migrate", "--rebase", "--owed", "x"), "Invalid value for '--owed': 'x' is not one of 'deliver', 'drop'"),
        (("deliveries", "--state", "x"), "Invalid value for '--state': 'x' is not one of "),
        (("endpoints", "show"), "Missing argument"),
    ],
)
def test_options_are_scolded_in_plain_words(arguments: tuple[str, ...], sentence: str) -> None:
    found = webhookd(*arguments)
    fails(found, 2, sentence)
    assert not re.search(r"Input|error,|pydantic|[Vv]alidat|unable to parse|[Tt]yper|[Cc]lick", found.stderr)


@pytest.mark.parametrize("group", [(), ("secret",), ("endpoints",)], ids=" ".join)
def test_every_summary_is_whole_on_80_columns(group: tuple[str, ...]) -> None:
    shown = webhookd(*group, "--help", env={"COLUMNS": "80"}).stdout.partition("Commands:")[2]
    assert shown.count("\n  ") >= (len(COMMANDS) if not group else 2)
    assert not [line for line in shown.splitlines() if line.endswith(("...", "…"))]


def imported(*arguments: str, env: Mapping[str, str] | None = None) -> set[str]:
    """The packages, and the modules of ours, that a command has imported in the end."""
    code = (
        "import json, sys\n"
        "from webhookd.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: print('imported', json.dumps(sorted(sys.modules)))"
    )
    run = [sys.executable, "-c", code, *arguments]
    found = subprocess.run(run, env={**PLAIN, **(env or {})}, capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(found.stdout.rpartition("imported ")[2]))


def test_a_command_imports_what_it_needs() -> None:
    away = {"WEBHOOKD_DSN": NOWHERE}
    database, configuration_, daemon = (
        {"asyncpg"},
        {"webhookd.config.config"},
        {"aiohttp", "watchfiles", "webhookd.daemon.daemon"},
    )
    for arguments, needed, not_needed in (
        (("--version",), {"typer"}, database | configuration_ | daemon | {"uvloop", "structlog", "cryptography"}),
        (("status",), database, configuration_ | daemon | {"cryptography"}),
        (("events",), database, configuration_ | daemon | {"cryptography"}),
        (("pause", "a"), database, configuration_ | daemon | {"cryptography"}),
        (("erase", "--tenant", "a"), database, configuration_ | daemon | {"cryptography"}),
        (("emit", "a", "{}"), database, daemon),
        (("check",), database | configuration_, daemon),
        (("secret", "new"), {"cryptography"}, daemon),
    ):
        found = imported(*arguments, env=away)
        assert needed <= found, arguments
        assert not not_needed & found, arguments
        ours = {each.split(".")[2] for each in found if each.startswith("webhookd.cli.")}
        assert "run" not in ours, arguments


INTERRUPTED = """
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[-1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
interrupted = sys.argv[-1]
runpy.run_module("webhookd", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", ["webhookd.cli.main", "typer", "webhookd.cli.status", "asyncpg", "uvloop"])
def test_ctrl_c_while_it_is_being_imported_prints_no_traceback(module: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.replace("sys.argv[-1]", repr(module)), "status"],
        env={**PLAIN, "WEBHOOKD_DSN": NOWHERE}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert found.returncode == 130
    assert found.stderr.strip() in ("", "Aborted.")


def test_migrate_makes_the_schema_and_then_finds_nothing_to_do(empty_dsn: str, tmp_path: Path) -> None:
    first = webhookd("migrate", env={"WEBHOOKD_DSN": empty_dsn}, cwd=tmp_path)  # no configuration file at all
    assert (first.returncode, first.stderr) == (0, "")
    assert "applied 0001_schema\n" in first.stdout
    second = webhookd("migrate", "-c", configuration(tmp_path, empty_dsn))
    assert (second.returncode, second.stdout) == (0, "the schema is up to date\n")


async def test_migrate_sql_is_a_script_that_works_and_needs_no_database(empty_dsn: str, tmp_path: Path) -> None:
    printed = webhookd("migrate", "--sql", cwd=tmp_path)
    assert (printed.returncode, printed.stderr) == (0, "")
    connection = await asyncpg.connect(empty_dsn)
    await connection.execute(printed.stdout)
    await connection.close()
    assert webhookd("migrate", env={"WEBHOOKD_DSN": empty_dsn}).stdout == "the schema is up to date\n"


async def test_emit_writes_the_event_byte_for_byte(
    dsn: str, sql: "asyncpg.Connection[asyncpg.Record]", tmp_path: Path
) -> None:
    env = {"WEBHOOKD_DSN": dsn}
    file = tmp_path / "payload.json"
    file.write_text('{"price": 1.10}\n')
    shown = [
        webhookd("emit", "order.created", '{"b": 1,  "a": 2}', env=env, cwd=tmp_path),
        webhookd(
            "emit",
            "order.created",
            f"@{file}",
            "--tenant",
            "acme",
            "--metadata",
            '{"region": "eu"}',
            env=env,
            cwd=tmp_path,
        ),
        webhookd("emit", "a", "-", "--event-id", "mine-1", "--ordering-key", "k", env=env, stdin='"ü"', cwd=tmp_path),
    ]
    assert [(each.returncode, each.stderr) for each in shown] == [(0, "")] * 3
    rows = await sql.fetch("SELECT event_id, payload, tenant, metadata, ordering_key FROM webhookd.outbox ORDER BY id")
    assert [row["event_id"] for row in rows] == [each.stdout.strip() for each in shown]
    assert [tuple(row)[1:] for row in rows] == [
        ('{"b": 1,  "a": 2}', "", None, None),
        ('{"price": 1.10}\n', "acme", '{"region": "eu"}', None),
        ('"ü"', "", None, "k"),
    ]
    assert rows[2]["event_id"] == "mine-1"


def test_json_of_what_is_done(empty_dsn: str, tmp_path: Path) -> None:
    config = configuration(tmp_path, empty_dsn)

    def said_by(*arguments: str) -> Any:
        found = webhookd(*arguments, "--json", "-c", config)
        assert (found.returncode, found.stderr) == (0, "")
        return json.loads(found.stdout)

    assert said_by("migrate") == {"applied": [each.name for each in MIGRATIONS], "rebased": None}
    taken = {"environment": "production", "owed": "drop", "events": 0, "batches": 0, "deliveries": 0, "later": 0}
    assert said_by("migrate", "--rebase", "--owed=drop") == {"applied": [], "rebased": taken}
    assert said_by("migrate", "--rebase", "--owed=drop") == {"applied": [], "rebased": None}
    assert said_by("emit", "order.created", "{}").keys() == {"event_id", "endpoints", "explain"}
    assert said_by("maintain") == {"done": [], "problems": []}
    assert said_by("reload") == {
        "added": ["orders"], "removed": [], "changed": [], "kept_by_others": [], "daemons": [], "unanswered": 0,
    }  # fmt: skip
    fails(webhookd("migrate", "--sql", "--json"), 2, "--json goes neither with --sql nor with --sql-files")


async def test_emit_for_later(dsn: str, sql: "asyncpg.Connection[asyncpg.Record]") -> None:
    for when in ("90s", "2099-01-31T08:00:00+01:00"):
        assert webhookd("emit", "a", "{}", "--deliver-after", when, env={"WEBHOOKD_DSN": dsn}).returncode == 0
    soon, later = await sql.fetch(
        "SELECT deliver_after - now() AS away, deliver_after FROM webhookd.outbox ORDER BY id"
    )
    assert 60 < soon["away"].total_seconds() < 90
    assert later["deliver_after"].isoformat() == "2099-01-31T07:00:00+00:00"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("a", '{"a":'), "webhookd: PAYLOAD is no JSON: Expecting value (line 1, column 6)\n"),
        (("a", "NaN"), "webhookd: PAYLOAD is no JSON: NaN is no JSON number\n"),
        (("a", b"\xff".decode(errors="surrogateescape")), "webhookd: PAYLOAD is no JSON: it is not UTF-8\n"),
        (("a", "@/does/not/exist"), "webhookd: PAYLOAD: /does/not/exist cannot be read: No such file or directory\n"),
        (("a", "{}", "--metadata", "x"), "webhookd: --metadata is no JSON: Expecting value (line 1, column 1)\n"),
        (("a", "{}", "--event-id", "a b"), "webhookd: --event-id: write 1 to 128 of A-Z, a-z, 0-9, '_' and '-'\n"),
        (("a", "{}", "--deliver-after", "2030-01-01"), 'like "10m"'),
        (("", "{}"), "webhookd: TYPE is empty"),
        (("order created", "{}"), 'webhookd: TYPE: "order created" is no event type; write words with dots'),
        (("order.*", "{}"), 'webhookd: TYPE: "order.*" is no event type; write words with dots'),
        (("webhookd.endpoint.failing", "{}"), "would be an event of webhookd's own; begin with another word"),
        (("a", "{}", "--metadata", "[1]"), "webhookd: --metadata is no JSON object: write labels such as"),
        (("a", "{}", "--metadata", '"eu"'), "webhookd: --metadata is no JSON object: write labels such as"),
    ],
)
def test_emit_says_in_one_sentence_what_is_wrong(arguments: tuple[str, ...], sentence: str) -> None:
    found = webhookd("emit", *arguments, env={"WEBHOOKD_DSN": NOWHERE})
    fails(found, 2, sentence)
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [("migrate",), ("status",), ("emit", "a", "{}")])
def test_a_database_that_is_away_is_69(command: tuple[str, ...]) -> None:
    found = webhookd(*command, env={"WEBHOOKD_DSN": NOWHERE})
    fails(found, 69, "does not answer")
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [("status",), ("emit", "a", "{}")])
def test_a_database_without_the_schema_says_what_to_run(command: tuple[str, ...], empty_dsn: str) -> None:
    fails(webhookd(*command, env={"WEBHOOKD_DSN": empty_dsn}), 69, "`webhookd migrate`")


def _with_a_configuration(command: Any, *names: str) -> Iterator[tuple[str, ...]]:
    for name, below in getattr(command, "commands", {}).items():
        yield from _with_a_configuration(below, *names, name)
    if any(parameter.name == "config" for parameter in command.params) and names:
        yield names


@pytest.mark.parametrize("names", [*_with_a_configuration(get_command(app))], ids=" ".join)
def test_a_file_that_is_named_before_a_command_is_the_one_it_takes(names: tuple[str, ...]) -> None:
    command = get_command(app)
    with command.make_context("webhookd", ["-c", "there.toml", *names], allow_extra_args=True) as context:
        assert command.callback is not None
        context.invoke(command.callback, config=Path("there.toml"))
        found: Any = context.default_map
        for name in names:
            found = found[name]
    assert found == {"config": "there.toml"}


def test_no_configuration_at_all_is_78(tmp_path: Path) -> None:
    fails(webhookd("run", cwd=tmp_path), 78, "there is no configuration")
    fails(webhookd("status", cwd=tmp_path), 78, "there is no configuration", "WEBHOOKD_DSN")


def test_every_mistake_of_the_configuration_is_told(tmp_path: Path) -> None:
    file = tmp_path / "webhookd.toml"
    file.write_text('[delivery]\ntimout = "3s"\n[endpoint.a]\nurl = "https://hooks.example.com/"\nevents = []\n')
    for arguments in (("run", "-c", file), ("--config", file, "run")):
        found = webhookd(*arguments)
        fails(found, 78, "timout", "timeout", "[endpoint.a] events", "[endpoint.a] secret")
        assert all(line.startswith("webhookd: ") for line in found.stderr.splitlines())


async def test_a_schema_of_the_future_is_78(
    dsn: str, sql: "asyncpg.Connection[asyncpg.Record]", tmp_path: Path
) -> None:
    await sql.execute("INSERT INTO webhookd.schema_version (version, name, breaking) VALUES (9999, 'future', true)")
    found = webhookd("run", "-c", configuration(tmp_path, dsn))
    fails(found, 78, "9999", "upgrade webhookd")
    assert len([line for line in found.stderr.splitlines() if line[0] != "{"]) == 1, "one sentence beside the log"
    fails(webhookd("status", env={"WEBHOOKD_DSN": dsn}), 78, "upgrade webhookd")


def test_status_of_a_database_that_nobody_serves(dsn: str) -> None:
    env = {"WEBHOOKD_DSN": dsn}
    for _ in range(3):
        webhookd("emit", "order.created", "{}", env=env)
    found = json.loads(webhookd("status", "--json", env=env).stdout)
    assert found["waiting"]["events"] == 3
    assert found["waiting"]["oldest_seconds"] > 0
    assert found["daemons"] == found["endpoints"] == []
    shown = webhookd("status", env=env).stdout
    assert "none is alive" in shown
    assert "3 events, the oldest for" in shown


async def test_run_delivers_shows_in_status_and_ends_on_sigterm(dsn: str, tmp_path: Path) -> None:
    got: list[Received] = []
    async with local_receiver((), got.append, random=lambda: 0.5) as url:
        config = configuration(tmp_path, dsn, f"{url}/hook")
        async with running(config) as (daemon, log):
            await until(lambda: said(log, "started"), "the daemon runs")
            for type_ in ("order.created", "invoice.paid"):
                await asyncio.to_thread(webhookd, "emit", "-c", config, type_, '{"n":1}')
            await until(lambda: got, "the event arrives")

            def quiet() -> dict[str, Any]:
                found = status(config)
                settled = found["last_minute"]["delivered"] == 1 and not found["open_batches"]["batches"]
                return found if settled else {}

            found = await until(quiet, "the delivery is recorded")
            assert found["waiting"] == {"events": 0, "oldest_seconds": None}
            assert [one["version"] for one in found["daemons"]] == [__version__]
            assert found["endpoints"][0] == {
                "tenant": "",
                "name": "orders",
                "state": "active",
                "backlog": dict.fromkeys(
                    ("waiting", "retrying", "held", "parked", "exhausted", "rejected", "missed"), 0
                ),
                "undecided": 0,
                "more": {"parked": False, "missed": False},
                "next_try_seconds": None,
                "fed": "live",
                "behind_seconds": None,
                "last_minute": {"delivered": 1, "failed": 0},
            }
            daemon.send_signal(signal.SIGTERM)
        assert daemon.returncode == 0
        assert said(log, "stopped")
        assert len(got) == 1
    assert status(config)["daemons"] == []


async def test_status_shows_what_is_owed(dsn: str, tmp_path: Path) -> None:
    config = configuration(tmp_path, dsn)  # nobody listens there
    async with running(config) as (daemon, log):
        await until(lambda: said(log, "started"), "the daemon runs")
        await asyncio.to_thread(webhookd, "emit", "-c", config, "order.created", "{}")

        def owed() -> bool:
            (endpoint,) = status(config)["endpoints"]
            return bool(endpoint["backlog"]["retrying"] == 1 and endpoint["last_minute"]["failed"] == 1)

        await until(owed, "the failure is in the backlog")
        daemon.send_signal(signal.SIGINT)
    assert daemon.returncode == 0


async def test_run_waits_for_a_database_says_so_and_ends_on_sigterm(tmp_path: Path) -> None:
    async with running(configuration(tmp_path, NOWHERE)) as (daemon, log):
        line = await until(lambda: said(log, "waiting_for_database"), "it says that it waits")
        assert line["level"] == "warning"
        assert "does not answer" in line["reason"]
        daemon.send_signal(signal.SIGTERM)
    assert daemon.returncode == 0


async def test_run_waits_for_a_migration(empty_dsn: str, tmp_path: Path) -> None:
    config = configuration(tmp_path, empty_dsn)
    async with running(config) as (daemon, log):
        line = await until(lambda: said(log, "waiting_for_database"), "it says that it waits")
        assert "`webhookd migrate`" in line["reason"]
        assert (await asyncio.to_thread(webhookd, "migrate", "-c", config)).returncode == 0
        await until(lambda: said(log, "started"), "it starts by itself")
        daemon.send_signal(signal.SIGTERM)
    assert daemon.returncode == 0


async def test_a_second_signal_ends_it_at_once(dsn: str, tmp_path: Path) -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        asked.set()
        await reader.read()  # until the daemon is gone
        writer.close()

    asked = asyncio.Event()
    async with await asyncio.start_server(never, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        config = configuration(tmp_path, dsn, f"http://127.0.0.1:{port}/hook")
        async with running(config) as (daemon, log):
            await until(lambda: said(log, "started"), "the daemon runs")
            await asyncio.to_thread(webhookd, "emit", "-c", config, "order.created", "{}")
            await asyncio.wait_for(asked.wait(), HANGS)
            daemon.send_signal(signal.SIGTERM)
            await until(lambda: said(log, "stopping"), "it begins to stop")
            assert daemon.returncode is None
            daemon.send_signal(signal.SIGTERM)
            await asyncio.wait_for(daemon.wait(), HANGS)
    assert daemon.returncode == 1, "it has not stopped in order, which takes what is in flight"


async def test_an_error_that_no_code_expects_is_told_and_ends_nothing(
    dsn: str, sql: "asyncpg.Connection[asyncpg.Record]", tmp_path: Path
) -> None:
    config = configuration(tmp_path, dsn)
    async with running(config) as (daemon, log):
        await until(lambda: said(log, "started"), "the daemon runs")
        await sql.execute("ALTER TABLE webhookd.daemon ADD CONSTRAINT broken CHECK (low < -1) NOT VALID")
        # The wake-up, which notes its connection there, may break before it.
        beats = lambda: [line for line in log if line["event"] == "part_failed" and line["part"] == "heartbeat"]  # noqa: E731
        (line, *_) = await until(beats, "the heartbeat breaks")
        assert "broken" in line["reason"]
        await sql.execute("ALTER TABLE webhookd.daemon DROP CONSTRAINT broken")
        await asyncio.to_thread(webhookd, "emit", "-c", config, "order.created", "{}")
        await until(lambda: sql.fetchval("SELECT EXISTS (SELECT FROM webhookd.attempt)"), "it goes on")
        daemon.send_signal(signal.SIGTERM)
    assert daemon.returncode == 0
