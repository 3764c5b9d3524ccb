"""The tools of an incident, when the files have mistakes: they need to know where the database is, and nothing else."""

import signal
from pathlib import Path

import pytest

from tests.integration.cli.test_cli import fails, running, webhookd
from tests.integration.cli.test_commands import endpoint
from tests.integration.cli.test_reload_command import said
from tests.integration.conftest import Sql, eventually
from tests.waiting import until

COMMANDS = [
    ("status",),
    ("events",),
    ("deliveries",),
    ("attempts",),
    ("endpoints", "list"),
    ("endpoints", "show", "orders"),
    ("pause", "orders"),
    ("resume", "--all"),
    ("erase", "--tenant", "acme"),
    ("emit", "order.created", "{}"),
    ("migrate",),
    ("migrate", "--rebase", "--owed=drop"),
]
MISTAKES = {
    "everywhere": (
        '[delivery]\ntimeout = "a while"\n[log]\nlevl = "info"\n',
        "[endpoint.new]\nurl = https://x.example/\n",
    ),
    "no endpoint": ("", ""),
}


def written(folder: Path, dsn: str, main: str = "", file: str = "") -> Path:
    """A configuration of these texts, with its endpoints in a file of their own."""
    (folder / "endpoints.d").mkdir(exist_ok=True)
    (folder / "endpoints.d" / "all.toml").write_text(file)
    config = folder / "webhookd.toml"
    config.write_text(f'[database]\ndsn = "{dsn}"\n{main}')
    return config


@pytest.fixture
async def known(sql: Sql) -> None:
    """The database knows an endpoint, as after a day of work."""
    await sql.execute(
        "INSERT INTO webhookd.endpoint (name, source, spec) VALUES ('orders', 'file', $1)",
        '{"url": "https://hooks.example.com/", "events": ["*"], "active": true}',
    )


@pytest.mark.parametrize("mistake", MISTAKES)
def test_no_mistake_takes_them_away(known: None, dsn: str, tmp_path: Path, mistake: str) -> None:
    config = written(tmp_path, dsn, *MISTAKES[mistake])
    fails(webhookd("check", "-c", config), 78)
    for command in COMMANDS:
        found = webhookd(*command, "-c", config)
        assert found.returncode == 0, (command, found.stderr)
        notes = ("no endpoint of the configuration", "it goes to nobody")
        assert not [line for line in found.stderr.splitlines() if not any(note in line for note in notes)]


@pytest.mark.parametrize("command", [COMMANDS[0], COMMANDS[-1]], ids=" ".join)
def test_a_main_file_that_is_no_toml_does_and_says_so(tmp_path: Path, command: tuple[str, ...]) -> None:
    config = written(tmp_path, "postgresql:///a", "[log\n")
    fails(webhookd(*command, "-c", config), 78, f"{config}:3: is not TOML")


async def test_rebase_takes_the_environment_of_the_file(dsn: str, sql: Sql, tmp_path: Path) -> None:
    config = written(tmp_path, dsn, '[daemon]\nenvironment = "staging"\n', "no TOML")
    found = webhookd("migrate", "--rebase", "--owed=drop", "-c", config)
    assert found.returncode == 0, found.stderr
    assert await sql.fetchval("SELECT environment FROM webhookd.binding") == "staging"


async def test_run_without_endpoints_waits_for_some_where_nobody_misses_one(dsn: str, sql: Sql, tmp_path: Path) -> None:
    config = written(tmp_path, dsn)
    async with running(config) as (daemon, log):
        assert (await until(lambda: said(log, "started"), "a start"))[0]["endpoints"] == 0

        async def reloaded() -> bool:
            # The watch may begin a moment after the start; every write is another chance.
            config.write_text(config.read_text() + "\n")
            return bool(said(log, "reloaded"))

        await eventually(reloaded, "a reload that still finds none")
        assert not said(log, "reload_refused")
        (tmp_path / "endpoints.d" / "all.toml").write_text(endpoint("first"))
        first = "SELECT EXISTS (SELECT FROM webhookd.endpoint WHERE name = 'first' AND removed_at IS NULL)"
        await until(lambda: sql.fetchval(first), "the first one")

        (tmp_path / "endpoints.d" / "all.toml").write_text("")
        refused = await until(lambda: said(log, "reload_refused"), "the refusal of removing all")
        assert f"{tmp_path / 'endpoints.d'}: has no endpoint" in refused[0]["mistakes"][0]
        assert await sql.fetchval(first)
        daemon.send_signal(signal.SIGTERM)
    assert daemon.returncode == 0


async def test_run_without_endpoints_is_refused_where_one_would_be_missed(
    known: None, dsn: str, sql: Sql, tmp_path: Path
) -> None:
    config = written(tmp_path, dsn)
    sentence = f"webhookd: {tmp_path / 'endpoints.d'}: has no endpoint; write [endpoint.NAME] in a file such as"
    found = webhookd("run", "-c", config)
    fails(found, 78, sentence)
    assert await sql.fetchval("SELECT removed_at IS NULL FROM webhookd.endpoint")
    await sql.execute("UPDATE webhookd.endpoint SET removed_at = now()")
    async with running(config) as (daemon, log):
        await until(lambda: said(log, "started"), "a start")
        daemon.send_signal(signal.SIGTERM)
    assert daemon.returncode == 0


def test_check_and_reload_refuse_no_endpoints(dsn: str, tmp_path: Path) -> None:
    config = written(tmp_path, dsn)
    for command in (("check",), ("check", "--offline"), ("reload",), ("reload", "--accept-removals")):
        fails(webhookd(*command, "-c", config), 78, "has no endpoint")
