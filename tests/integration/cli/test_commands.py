"""The commands for people: a first configuration, what is wrong with it, who gets what, and a receiver to try it on."""

import base64
import json
import os
import re
import resource
import shlex
import stat
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import asyncpg
import pytest

from tests.integration.cli.test_cli import NOWHERE, PLAIN, fails, webhookd
from tests.integration.conftest import as_user
from webhookd.cli.check import check
from webhookd.cli.init import KEY, TEMPLATES, TOKENS, _first_walk, template
from webhookd.cli.main import exit_code
from webhookd.cli.options import environment
from webhookd.cli.reload import _judge
from webhookd.config.config import Config
from webhookd.config.loader import load
from webhookd.errors import StoreUnavailable
from webhookd.message.signing import parse_secret, parse_verifier
from webhookd.store.registry import Reload

SECRET = "whsec_" + base64.b64encode(b"PLANTED-secret-of-the-command-tests").decode()
OTHER = "whsec_" + base64.b64encode(b"PLANTED-another-secret-of-the-tests").decode()
ROOT = Path(__file__).parents[3]
for name in ("INVOCATION_ID", "NOTIFY_SOCKET"):  # of whatever runs the tests
    PLAIN.pop(name, None)


def endpoint(name: str, **keys: Any) -> str:
    table = {"url": "https://hooks.example.com/", "events": ["*"], "signature": "none", **keys}
    return f"[endpoint.{name}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in table.items())


def toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


def written(folder: Path, *endpoints: str, dsn: str = NOWHERE, more: str = "") -> Path:
    file = folder / "webhookd.toml"
    file.write_text("\n".join([f'[database]\ndsn = "{dsn}"\n{more}', *endpoints]))
    return file


async def deploy(sql: "asyncpg.Connection[asyncpg.Record]", loaded: Config, config_hash: str | None = None) -> None:
    """What a daemon that runs this configuration leaves in the database."""
    await sql.executemany(
        "INSERT INTO webhookd.endpoint (tenant, name, source, spec) VALUES ($1, $2, 'file', $3)",
        [(*key, json.dumps(spec)) for key, spec in loaded.specs.items()],
    )
    await sql.execute(
        """INSERT INTO webhookd.daemon (id, host, version, config_hash, beat_at)
           VALUES (7, 'here', '0', $1, now() + interval '1 hour')""",  # it lives as long as the test, however slow
        config_hash or loaded.config_hash,
    )


def cpu_of_commands() -> float:
    """Seconds of a CPU that the commands have had so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# init


def test_init_writes_a_configuration_that_is_right_and_has_a_secret_of_its_own(tmp_path: Path) -> None:
    found = webhookd("init", cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == (
        "wrote config/webhookd.toml\n"
        "wrote config/endpoints.d/example.toml\n"
        "wrote config/sealing.key\n"
        "wrote config/api.tokens\n"
        "\n"
        "config/endpoints.d/example.toml has a fresh secret and an endpoint that is inactive until active = true. "
        "api.tokens has a token of an administrator for the HTTP API, which [api] listen switches on, and sealing.key "
        "seals what is secret of endpoints that are made by it: keep a copy elsewhere.\n"
        f"Next, as in README:\n\n{_first_walk(Path('config'))}\n"
    )
    for name in ("endpoints.d/example.toml", "sealing.key", "api.tokens"):
        assert stat.S_IMODE((tmp_path / "config" / name).stat().st_mode) == 0o640
    loaded = load(tmp_path / "config/webhookd.toml", {})
    assert [key.id for key in loaded.encryption.keys] == ["first"]
    assert list(loaded.api.tokens.values()) == ["admin"]
    assert loaded.api.listen == ""
    file = tmp_path / "config/endpoints.d/example.toml"
    secret = tomllib.loads(file.read_text())["endpoint"]["example"]["secret"]
    parse_secret(secret)
    assert secret not in (ROOT / "config/endpoints.d/example.toml").read_text()
    assert "fake" not in file.read_text().partition("secret =")[0]
    assert webhookd("check", "--offline", cwd=tmp_path).returncode == 0


def test_init_elsewhere_names_the_file_in_what_comes_next(tmp_path: Path) -> None:
    found = webhookd("init", "my hooks", cwd=tmp_path, env={"COLUMNS": "80"})
    told, _, commands = found.stdout.partition("Next, as in README:")
    assert max(map(len, told.splitlines())) <= 80
    assert commands
    assert "\nexport WEBHOOKD_CONFIG='my hooks/webhookd.toml' WEBHOOKD_DSN=" in found.stdout
    assert (tmp_path / "my hooks/webhookd.toml").exists()


@pytest.mark.parametrize("there", [*TEMPLATES, KEY, TOKENS])
def test_init_overwrites_nothing(tmp_path: Path, there: str) -> None:
    file = tmp_path / "config" / there
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    fails(
        webhookd("init", cwd=tmp_path),
        1,
        f"webhookd: config/{there} is there already, so nothing was written: name another DIRECTORY\n",
    )
    assert [each.read_text() for each in tmp_path.rglob("*") if each.is_file()] == ["mine"]


def test_init_where_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = webhookd("init", "file/config", cwd=tmp_path)
    fails(found, 1, "cannot be written: Not a directory")
    assert found.stderr.count("\n") == 1


def test_the_wheel_brings_what_init_writes() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    written = {f"config/{name}": f"webhookd/templates/{name}" for name in TEMPLATES}
    assert wheel["force-include"] == {**written, "systemd": "webhookd/systemd"}
    assert all(template(name) for name in TEMPLATES)


# check


def test_the_first_endpoint_is_refused_with_the_lines_that_allow_it(tmp_path: Path) -> None:
    hook = endpoint("mine", url="http://localhost:3000")
    found = webhookd("check", "--offline", "-c", written(tmp_path, hook))
    fails(found, 78, "[endpoint.mine] url: the URL must start with https://, because http is not allowed; if that is")
    first, *lines = [line.strip() for line in found.stderr.splitlines()]
    assert first.endswith("; if that is meant, use --dev, on this machine only, or allow it with")
    assert lines == ["[egress]", "allow_http = true", 'allow_networks = ["127.0.0.0/8", "::1/128"]']
    allowed = webhookd("check", "--offline", "-c", written(tmp_path, hook, more="\n".join(lines)))
    assert (allowed.returncode, allowed.stderr) == (0, "")


def test_check_tells_every_mistake(tmp_path: Path) -> None:
    config = written(tmp_path, endpoint("a", events=[]), endpoint("b", timeout=3))
    found = webhookd("check", "-c", config)
    fails(found, 78, "[endpoint.a] events", "[endpoint.b] timeout")
    assert len(found.stderr.splitlines()) == 2


def test_check_of_the_files_alone(tmp_path: Path) -> None:
    config = written(tmp_path, endpoint("a"), endpoint("b", active=False))
    found = webhookd("check", "--offline", "-c", config)
    loaded = load(config, {})
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == f"{config}: no mistake; 2 endpoints, 1 inactive; configuration {loaded.config_hash}\n"
    assert json.loads(webhookd("check", "--offline", "--json", "-c", config).stdout) == {
        "file": str(config),
        "config_hash": loaded.config_hash,
        "endpoints": 2,
        "inactive": 1,
        "example_secrets": [],
        "exposed": [],
    }


@pytest.mark.parametrize("dev", [True, False])
async def test_a_daemon_that_runs_the_same_files_with_dev_or_without_is_called_so(
    dsn: str, sql: "asyncpg.Connection[asyncpg.Record]", tmp_path: Path, capsys: pytest.CaptureFixture[str], dev: bool
) -> None:
    config = written(tmp_path, endpoint("a"), dsn=dsn)
    await deploy(sql, load(config, environment(not dev)))
    given = ["--dev"] if dev else []
    here = "without --dev: leave it out here, too" if dev else "with --dev: give it here, too"
    found = webhookd("check", *given, "-c", config)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[1:] == [
        "database: it knows the same endpoints",
        f"daemon 7 on here runs it {here}",
    ]
    ours, other = (load(config, environment(way)).config_hash for way in (dev, not dev))
    for config_hash, told in (
        (ours, "reloaded"),
        (other, f"reloaded; it runs {here}"),
        ("0" * 16, f"reloaded, from other files or another environment than yours ({config})"),
    ):
        _judge([Reload(7, "here", config_hash, None)], config, load(config, environment(dev)), dev)
        assert capsys.readouterr().out == f"daemon 7 on here: {told}\n"


def test_dev_allows_http_wherever_the_files_are_read(dsn: str, tmp_path: Path) -> None:
    config = written(tmp_path, endpoint("a", url="http://127.0.0.1:9/", events=["a"]), dsn=dsn)
    fails(webhookd("run", "-c", config), 78, "if that is meant, use --dev, on this machine only, or allow")
    assert webhookd("maintain", "-c", config).returncode == 0, "it sends nothing"
    for command in (("check",), ("reload",), ("explain", "--type", "a")):
        fails(webhookd(*command, "-c", config), 78, "if that is meant, use --dev, on this machine only, or allow")
        found = webhookd(*command, "--dev", "-c", config)
        assert (found.returncode, found.stderr) == (0, "")
    assert webhookd("explain", "--url", "http://127.0.0.1:9/", cwd=tmp_path).returncode == 1
    assert webhookd("explain", "--url", "http://127.0.0.1:9/", "--dev", cwd=tmp_path).returncode == 0
    for given in ((), ("--dev",)):  # without it the files could not be read
        found = webhookd("emit", "b", "{}", *given, "-c", config)
        assert f"`webhookd explain {found.stdout.strip()} -c {config} --dev` says why" in found.stderr


@pytest.mark.parametrize("away", ["server", "schema"])
def test_check_without_a_database_says_what_it_found_in_the_files(tmp_path: Path, empty_dsn: str, away: str) -> None:
    dsn, why = (NOWHERE, "does not answer") if away == "server" else (empty_dsn, "`webhookd migrate`")
    config = written(tmp_path, endpoint("a"), dsn=dsn)
    found = webhookd("check", "--dev", "-c", config)
    assert found.returncode == 69
    assert why in found.stderr
    first, told = found.stdout.splitlines()
    assert first.startswith(f"{config}: no mistake; 1 endpoint; ")
    _, command, _ = told.split("`")
    assert told == f"database: it could not be asked what would change; `{command}` checks the files alone"
    alone = webhookd(*shlex.split(command.removeprefix("webhookd ")))
    assert (alone.returncode, alone.stdout, alone.stderr) == (0, f"{first}\n", "")
    document = json.loads(webhookd("check", "--json", "-c", config).stdout)
    assert why in document["database_problem"]
    assert document["endpoints"] == 1


def test_check_without_any_dsn_tells_the_ways_to_one_beside_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def nobody(*_: object, **__: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    for name in os.environ.keys() - PLAIN.keys():
        monkeypatch.delenv(name)
    monkeypatch.setattr("webhookd.store.dial.asyncpg.connect", nobody)
    config = tmp_path / "webhookd.toml"
    config.write_text(endpoint("a"))
    with pytest.raises(StoreUnavailable, match=r"Say where it is with WEBHOOKD_DSN=postgresql://") as problem:
        check(config, schema=False)
    assert exit_code(problem.value) == 69
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith(f"{config}: no mistake; 1 endpoint; ")
    assert told.endswith(f"`webhookd check --offline -c {config}` checks the files alone")


async def test_check_shows_the_difference_to_what_runs(
    dsn: str, sql: "asyncpg.Connection[asyncpg.Record]", tmp_path: Path
) -> None:
    loaded = load(written(tmp_path, endpoint("a"), endpoint("b"), endpoint("c", tenant="acme"), dsn=dsn), {})
    await deploy(sql, loaded)
    same = webhookd("check", "-c", tmp_path / "webhookd.toml")
    assert same.returncode == 0
    assert same.stdout.splitlines()[1:] == [
        "database: it knows the same endpoints",
        "daemons: the one that is alive runs this configuration",
    ]
    config = written(tmp_path, endpoint("a"), endpoint("c", tenant="acme", timeout="3s"), endpoint("d"), dsn=dsn)
    found = webhookd("check", "-c", config)
    assert found.returncode == 0
    assert found.stdout.splitlines()[1:] == [
        "added    d",
        "removed  b",
        "changed  acme/c",
        f"daemon 7 on here runs another configuration, {loaded.config_hash}, until it reloads",
    ]
    listed = json.loads(webhookd("check", "--json", "-c", config).stdout)
    assert {key: listed[key] for key in ("added", "removed", "changed", "refusal", "daemons")} == {
        "added": ["d"],
        "removed": ["b"],
        "changed": ["acme/c"],
        "refusal": None,
        "daemons": 1,
    }
    assert listed["daemons_that_differ"] == [{"id": 7, "host": "here", "config_hash": loaded.config_hash}]


async def test_check_of_many_endpoints_is_quick_and_refuses_a_wrong_push(
    dsn: str, sql: "asyncpg.Connection[asyncpg.Record]", tmp_path: Path
) -> None:
    many = [endpoint(f"e{number:04}", secret=SECRET, signature="standard") for number in range(8000)]
    files = tmp_path / "endpoints.d"
    files.mkdir()
    for number in range(80):
        (files / f"{number}.toml").write_text("\n".join(many[number * 100 : number * 100 + 100]))
    config = written(tmp_path, dsn=dsn)
    await deploy(sql, load(config, {}), "0123456789abcdef")
    for number in range(2):
        (files / f"{number}.toml").unlink()
    before = cpu_of_commands()
    found = webhookd("check", "-c", config)
    took = cpu_of_commands() - before
    assert found.returncode == 1
    lines = found.stdout.splitlines()
    assert lines[0].startswith(f"{config}: no mistake; 7800 endpoints; ")
    assert lines[1] == "removed  e0000"
    assert "removed  180 more; --json lists all" in lines
    assert lines[-1].startswith(
        "a reload would be refused: 200 of 8000 endpoints are gone from the files (e0000, e0001,"
    )
    assert took < 5, "2 s on a machine that does nothing else"


def test_check_schema_is_json_schema() -> None:
    schema = json.loads(webhookd("check", "--schema").stdout)
    assert "endpoint" in schema["properties"]


# explain

SHOPS = (
    endpoint("orders", events=["order.*"]),
    endpoint("bills", events=["bill.paid"]),
    endpoint("europe", filter={"region": ["eu", "us"]}),
    endpoint("other", tenant="acme"),
    endpoint("off", active=False),
)


def test_explain_a_type(tmp_path: Path) -> None:
    config = written(tmp_path, *SHOPS)
    found = webhookd("explain", "--type", "order.created", "--metadata", '{"region": "asia"}', "-c", config)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.splitlines() == [
        "an event 'order.created', by the files as they are now",
        "",
        "1 endpoint gets it",
        "  orders",
        "",
        "4 endpoints do not",
        "  off         inactive: it is switched off with active = false",
        '  europe      filter: "region" is "asia", it wants "eu" or "us"',
        '  bills       type: it subscribes to "bill.paid"',
        '  acme/other  tenant: it gets those of "acme", the event is of ""',
    ]
    listed = webhookd("explain", "--type", "a", "--tenant", "acme", "--json", "-c", config)
    assert json.loads(listed.stdout)["endpoints"][3:4] == [{"endpoint": "acme/other", "gets_it": True, "why_not": None}]


def test_explain_a_filter_of_payloads(tmp_path: Path) -> None:
    config = written(tmp_path, endpoint("large", filter={"data": {"amount": {"gte": 100}}}))
    for payload, code, line in (
        ({"amount": 100}, 0, "  large"),
        ({"amount": 99}, 1, '  large  payload: "amount" of the payload is 99, it wants {"gte": 100}'),
    ):
        found = webhookd("explain", "--type", "a", "--payload", json.dumps(payload), "-c", config)
        assert (found.returncode, found.stderr) == (code, "")
        assert line in found.stdout.splitlines()
    found = webhookd("explain", "--type", "a", "--json", "-c", config)
    assert json.loads(found.stdout)["endpoints"][0]["gets_it"] is None


def test_explain_says_no_with_1(tmp_path: Path) -> None:
    found = webhookd("explain", "--type", "a", "--tenant", "nobody", "-c", written(tmp_path, *SHOPS))
    assert (found.returncode, found.stderr) == (1, "")
    assert "no endpoint gets it\n" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ((), 2, "webhookd: name one thing to explain: EVENT_ID, --type TYPE or --url URL\n"),
        (("evt_1", "--type", "a"), 2, "webhookd: name one thing to explain: EVENT_ID, --type TYPE or --url URL\n"),
        (("evt_1", "--tenant", "a"), 2, "webhookd: --tenant, --metadata and --payload go with --type: an EVENT_ID has"),
        (("evt_1", "--payload", "1"), 2, "webhookd: --tenant, --metadata and --payload go with --type: an EVENT_ID"),
        (("--type", "a", "--payload", "{"), 2, "webhookd: --payload is no JSON: "),
        (("--type", "a", "--metadata", "{"), 2, "webhookd: --metadata is no JSON: "),
        (("evt_1",), 69, "does not answer"),
    ],
)
def test_explain_says_in_one_sentence_what_is_wrong(
    tmp_path: Path, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    found = webhookd("explain", *arguments, "-c", written(tmp_path, *SHOPS))
    fails(found, code, sentence)
    assert found.stderr.count("\n") == 1


async def test_explain_an_event_tells_what_became_of_it(
    dsn: str, sql: "asyncpg.Connection[asyncpg.Record]", tmp_path: Path
) -> None:
    config = written(tmp_path, *SHOPS, dsn=dsn)
    emitted = webhookd("emit", "-c", config, "order.created", "{}", "--event-id", "evt_1")
    assert (emitted.returncode, emitted.stderr) == (0, "")
    written(tmp_path, endpoint("large", filter={"data": {"amount": 1}}), dsn=dsn)
    assert '"amount" of the payload is missing, it wants' in webhookd("explain", "evt_1", "-c", config).stdout
    written(tmp_path, *SHOPS, dsn=dsn)
    found = webhookd("explain", "evt_1", "-c", config)
    assert found.returncode == 0
    lines = found.stdout.splitlines()
    assert re.fullmatch(r"event evt_1: 'order\.created', inserted \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", lines[0])
    assert lines[2:4] == ["what became of it", "  waiting: no daemon has taken it yet"]
    assert lines[5:7] == ["1 endpoint gets it by the files as they are now", "  orders"]

    await deploy(sql, load(config, {}))
    await sql.execute(
        """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, attempts, due, last_code)
           SELECT e.id, o.id, o.created_at, 2, now() + interval '45 s', 503
             FROM webhookd.endpoint e, webhookd.outbox o WHERE e.name = 'orders'"""
    )
    shown = webhookd("explain", "evt_1", "-c", config).stdout
    assert re.search(r"\n  orders: retrying after 2 attempts, last 503, next try in 4\d s\n", shown)
    (listed,) = json.loads(webhookd("explain", "evt_1", "--json", "-c", config).stdout)
    assert listed["event_id"] == "evt_1"
    assert [(each["endpoint"], each["state"], each["last_code"]) for each in listed["status"]] == [
        ("orders", "retrying", 503)
    ]
    fails(webhookd("explain", "evt_2", "-c", config), 1, "webhookd: the outbox has no event 'evt_2': ")


async def test_a_reader_has_all_that_people_ask_with_nothing_of_what_applications_say(
    granted: "asyncpg.Connection[asyncpg.Record]", dsn: str, tmp_path: Path
) -> None:
    """Also of a parked endpoint with a filter, which event_status tries; explain says which filters it did not."""
    large = endpoint("large", filter={"data": {"amount": 1}})
    config = written(tmp_path, *SHOPS, large, dsn=as_user(dsn, "webhookd_reader"))
    await deploy(granted, load(config, {}))
    said = '{"said": "planted-payload"}', '{"region": "eu", "planted": "planted-metadata"}'
    await granted.execute("SELECT webhookd.park(array_agg(id), 'test') FROM webhookd.endpoint WHERE name = 'europe'")
    await granted.execute("SELECT webhookd.emit('order.created', $1, metadata => $2, event_id => 'evt_1')", *said)
    await granted.execute("SELECT webhookd.cut(100, 100, 1)")
    shown = webhookd("explain", "evt_1", "-c", config)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "  europe: parked (test)\n" in shown.stdout
    assert re.search(r"\n  europe +filter: this role may not read metadata, so that it may pass or not\n", shown.stdout)
    assert re.search(r"\n  large +payload: it is not known here, so that it may pass the filter or not\n", shown.stdout)
    (listed,) = json.loads(webhookd("explain", "evt_1", "--json", "-c", config).stdout)
    assert {each["endpoint"]: each["gets_it"] for each in listed["endpoints"]} == {
        "orders": True,
        "bills": False,
        "large": None,
        "europe": None,
        "acme/other": False,
        "off": False,
    }
    for command in (
        "events",
        "deliveries",
        "attempts --show-response",
        "endpoints list",
        "endpoints show europe",
        "status",
        "check",
    ):
        for form in ((), ("--json",)):
            found = webhookd(*command.split(), *form, "-c", config)
            assert (found.returncode, found.stderr) == (0, ""), command
            assert "planted" not in found.stdout
    owner = webhookd("explain", "evt_1", "-c", written(tmp_path, *SHOPS, dsn=dsn))
    assert "2 endpoints get it by the files as they are now\n  orders\n  europe\n" in owner.stdout


@pytest.mark.parametrize(
    ("url", "code", "lines"),
    [
        (
            "http://localhost:3000/",
            1,
            [
                "refused: the URL must start with https://, because http is not allowed; "
                "if that is meant, use --dev, on this machine only, or allow it with",
                "[egress]",
                "allow_http = true",
                'allow_networks = ["127.0.0.0/8", "::1/128"]',
            ],
        ),
        (
            "https://169.254.169.254/latest",
            1,
            [
                "refused: 169.254.169.254 is in 169.254.0.0/16, which is not public; if that is meant, allow it with",
                "[egress]",
                'allow_networks = ["169.254.169.254/32"]',
            ],
        ),
        (
            "https://u:p@example.com/",
            1,
            ["refused: the URL must not carry a user name or password; use a header instead"],
        ),
        ("https://93.184.216.34/", 0, ["allowed: 93.184.216.34 is", "  93.184.216.34: may be called"]),
    ],
)
def test_explain_a_url(tmp_path: Path, url: str, code: int, lines: list[str]) -> None:
    found = webhookd("explain", "--url", url, cwd=tmp_path)  # no configuration: what is allowed by default
    assert (found.returncode, found.stderr) == (code, "")
    assert found.stdout.splitlines() == lines


def test_explain_a_url_by_what_the_configuration_allows(tmp_path: Path) -> None:
    config = written(tmp_path, *SHOPS, more='[egress]\nallow_http = true\nallow_networks = ["127.0.0.0/8", "::1/128"]')
    found = webhookd("explain", "--url", "http://localhost:3000/", "-c", config)
    assert found.returncode == 0
    assert found.stdout.startswith("allowed: localhost is\n  ")
    listed = webhookd("explain", "--url", "http://127.0.0.1/", "--json", "-c", config).stdout
    assert json.loads(listed)["addresses"] == [{"address": "127.0.0.1", "allowed": True, "why_not": None}]
    unknown = webhookd("explain", "--url", "https://nowhere.invalid/", "-c", config)
    assert unknown.returncode == 1
    assert "nowhere.invalid cannot be resolved now" in unknown.stdout


@pytest.mark.parametrize("rest", ["", '[endpoint.x]\nurl = 3\n[log]\nlevel = "loud"', '[database]\ndsn = "no DSN"'])
def test_explain_a_url_reads_nothing_but_what_may_be_called(tmp_path: Path, rest: str) -> None:
    file = tmp_path / "webhookd.toml"
    (tmp_path / "endpoints.d").mkdir()
    (tmp_path / "endpoints.d" / "broken.toml").write_text("= no TOML")
    file.write_text(f"[egress]\nallow_http = true\nallow_networks = ['10.20.0.0/16']\n{rest}")
    found = webhookd("explain", "--url", "http://10.20.1.2/", "-c", file)
    assert (found.returncode, found.stderr) == (0, ""), found
    assert webhookd("explain", "--url", "http://10.30.1.2/", "-c", file).returncode == 1
    file.write_text(f"[egress]\nallow_htp = true\n{rest}")
    fails(webhookd("explain", "--url", "http://10.20.1.2/", "-c", file), 78, f"{file}:2: [egress] allow_htp: is no key")
    file.write_text(f'[egress]\nproxy_authorization = "Basic eDp5"\n{rest}')
    fails(webhookd("explain", "--url", "http://10.20.1.2/", "-c", file), 78, f"{file}:2: [egress] proxy_authorization:")


def test_explain_a_url_reads_the_secret_that_egress_names(tmp_path: Path) -> None:
    file = tmp_path / "webhookd.toml"
    file.write_text(
        '[egress]\nproxy = "http://proxy.internal:3128"\nproxy_authorization = { file = "password", user = "webhookd" }'
    )
    fails(webhookd("explain", "--url", "https://example.com/", "-c", file), 78, f"{file}:3: [egress] proxy_auth")
    (tmp_path / "password").write_text("PLANTED-password")
    found = webhookd("explain", "--url", "https://example.com/", "-c", file)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("allowed: through the proxy proxy.internal:3128")
    assert "PLANTED" not in found.stdout


# emit


async def test_emit_says_when_nobody_gets_it(dsn: str, tmp_path: Path) -> None:
    config = written(tmp_path, endpoint("orders", events=["order.*"]), dsn=dsn)
    found = webhookd("emit", "-c", config, "bill.paid", "{}", "--tenant", "a b")
    assert found.returncode == 0
    event_id = found.stdout.strip()
    assert len(event_id) == 36
    assert found.stderr == (
        "webhookd: accepted, but it goes to nobody: no live endpoint subscribes to it. "
        f"`webhookd explain {event_id} -c {config}` says why\n"
    )
    shown = webhookd("explain", event_id, "-c", config)
    assert shown.returncode == 1
    assert "no endpoint gets it" in shown.stdout
    config.write_text("broken")  # which is nothing to emit
    found = webhookd("emit", "bill.paid", "{}", env={"WEBHOOKD_DSN": dsn, "WEBHOOKD_CONFIG": str(config)})
    assert (found.returncode, found.stderr) == (0, "")


async def test_emit_asks_what_runs_and_the_files_only_where_nothing_does(
    dsn: str, sql: "asyncpg.Connection[asyncpg.Record]", tmp_path: Path
) -> None:
    running = [
        endpoint("orders", events=["order.*"], tenant="acme", filter={"region": ["eu"]}),
        endpoint("all", events=["*"], tenant="acme"),
        endpoint("off", events=["off"], active=False),
        endpoint("gone", events=["gone"]),
        endpoint("paused", events=["paused"]),
    ]
    await deploy(sql, load(written(tmp_path, *running), {}))
    await sql.execute("UPDATE webhookd.endpoint SET disabled_at = now() WHERE name = 'gone'")
    await sql.execute("UPDATE webhookd.endpoint SET paused_at = now() WHERE name = 'paused'")
    config = written(tmp_path, endpoint("of_files", events=["files"]), dsn=dsn)

    def count(type_: str, *more: str, **how: Any) -> int | None:
        found = webhookd("emit", type_, "{}", "--json", *more, **how)
        assert (found.returncode, found.stderr) == (0, "")
        said = json.loads(found.stdout)
        assert (said["explain"] is None) == (said["endpoints"] != 0)
        assert said["explain"] in (None, f"webhookd explain {said['event_id']} -c {config}")
        return cast(int | None, said["endpoints"])

    here = ("-c", str(config))
    acme = (*here, "--tenant", "acme")
    assert count("order.a", *acme) == 1
    assert count("order.a", *acme, "--metadata", '{"region": "eu"}') == 2
    assert [count(each, *here) for each in ("order.a", "off", "gone", "paused", "files")] == [0, 0, 0, 1, 0]
    await sql.execute("UPDATE webhookd.daemon SET beat_at = now() - interval '1 minute'")
    assert [count(each, *here) for each in ("paused", "files")] == [0, 1]
    nowhere = {"env": {"WEBHOOKD_DSN": dsn}, "cwd": tmp_path}
    assert count("order.a", **nowhere) is None, "nobody knows of any endpoint"


# secret


def test_secret_new() -> None:
    one, other = webhookd("secret", "new"), webhookd("secret", "new")
    assert one.stdout != other.stdout
    assert parse_secret(one.stdout.rstrip("\n")).kind == "v1"
    assert one.stdout.strip() not in one.stderr
    assert "[endpoint.NAME]" in one.stderr
    private, public = webhookd("secret", "new", "--ed25519").stdout.split()
    assert parse_secret(private).raw.endswith(parse_verifier(public).raw)
    assert json.loads(webhookd("secret", "new", "--ed25519", "--json").stdout).keys() == {"private", "public"}


# run, and help


@pytest.mark.parametrize("name", ["INVOCATION_ID", "NOTIFY_SOCKET"])
def test_run_dev_is_refused_under_systemd(tmp_path: Path, name: str) -> None:
    found = webhookd("run", "--dev", "-c", written(tmp_path, endpoint("a")), env={name: "1"})
    fails(found, 78, f"webhookd: run --dev is not for services, and systemd has started this one ({name} is set): ")
    assert found.stderr.count("\n") == 1


def test_a_secret_goes_into_a_file_that_others_cannot_read(tmp_path: Path) -> None:
    file = tmp_path / "new.secret"
    found = webhookd("secret", "new", "--out", file)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == f'wrote {file}; in the [endpoint.NAME] table: secret_file = "new.secret"\n'
    assert file.stat().st_mode & 0o777 in (0o600, 0o640)
    parse_secret(file.read_text().strip())
    again = webhookd("secret", "new", "--out", file)
    fails(again, 2, f"webhookd: --out: {file} is there already, and secrets are not written over: name another file")
    pair = webhookd("secret", "new", "--ed25519", "--out", tmp_path / "pair.secret")
    public = parse_verifier(pair.stdout.rpartition("for receivers: ")[2].strip())
    assert parse_secret((tmp_path / "pair.secret").read_text().strip()).raw.endswith(public.raw)
    fails(webhookd("secret", "new", "--out", tmp_path / "no" / "folder"), 2, "webhookd: --out: ")
    fails(
        webhookd("secret", "new", "--json", "--out", tmp_path / "other"), 2, "webhookd: --out writes the secret alone"
    )


def test_check_names_secrets_that_everyone_can_read() -> None:
    with TemporaryDirectory() as place:  # those of pytest are private
        folder = Path(place)
        folder.chmod(0o755)
        secret = folder / "our orders.secret"
        secret.write_text(SECRET)
        secret.chmod(0o644)
        config = written(folder, endpoint("orders", signature="standard", secret_file=secret.name))
        found = webhookd("check", "--offline", "-c", config)
        assert found.returncode == 0
        mend = f"{secret} has a secret that everyone on this machine can read; run \"chmod o-rwx '{secret}'\""
        assert found.stdout.splitlines()[1:] == [mend]
        assert json.loads(webhookd("check", "--offline", "--json", "-c", config).stdout)["exposed"] == [str(secret)]
        subprocess.run(shlex.split(mend.split('"')[1]), check=True)
        assert "chmod" not in webhookd("check", "--offline", "-c", config).stdout


def test_check_scolds_no_example_for_its_secret_until_somebody_signs_with_it() -> None:
    with TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)
        example = (ROOT / "config/endpoints.d/example.toml").read_text()
        for active in (False, True):
            config = written(folder, example.replace("active = false", f"active = {str(active).lower()}"))
            config.chmod(0o644)
            found = webhookd("check", "--offline", "-c", config)
            assert found.returncode == 0
            assert "chmod" not in found.stdout
            note = "note: example signs with the secret of the examples, which everybody knows: make one with `webhookd"
            assert (note in found.stdout) == active
            document = json.loads(webhookd("check", "--offline", "--json", "-c", config).stdout)
            assert document["example_secrets"] == (["example"] if active else [])


@pytest.mark.parametrize("command", ["init", "check", "explain", "emit", "listen", "secret new", "run"])
def test_help_is_for_strangers(command: str) -> None:
    found = webhookd(*command.split(), "--help", env={"COLUMNS": "100"})
    assert (found.returncode, found.stderr) == (0, "")
    assert "Usage: " in found.stdout
    for line in found.stdout.splitlines():
        assert not re.fullmatch(r"  --?[a-z0-9-]+( [A-Z]+)?", line), "an option without a word"


def test_completion_is_offered_and_works() -> None:
    assert "--install-completion" in webhookd("--help").stdout
    asked = {"_WEBHOOKD_COMPLETE": "complete_bash", "COMP_WORDS": "webhookd exp", "COMP_CWORD": "1"}
    command = Path(sys.executable).with_name("webhookd")  # by its own name, as a shell calls it
    completed = subprocess.run([command], env={**PLAIN, **asked}, capture_output=True, text=True, check=True)
    assert completed.stdout.split() == ["explain"]


async def test_names_of_endpoints_are_completed(dsn: str, sql: "asyncpg.Connection[asyncpg.Record]") -> None:
    await sql.executemany(
        "INSERT INTO webhookd.endpoint (tenant, name, source, spec) VALUES ($1, $2, 'file', '{}')",
        [("", "orders"), ("", "others"), ("acme", "orders"), ("o; rm -r", "x"), ("\x1b[2J", "x")],
    )
    command = Path(sys.executable).with_name("webhookd")

    def completed(words: str, dsn: str) -> list[str]:
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
        env = {**PLAIN, **asked, "_WEBHOOKD_COMPLETE": "complete_bash", "WEBHOOKD_DSN": dsn}
        found = subprocess.run([command], env=env, capture_output=True, text=True, check=True)
        assert found.stderr == ""
        return found.stdout.split()

    for words in ("endpoints show o", "pause o", "resume o", "attempts --endpoint o", "deliveries --endpoint o"):
        assert completed(f"webhookd {words}", dsn) == ["orders", "others"], words
    assert completed("webhookd pause orders acme/", dsn) == ["acme/orders"]
    assert completed("webhookd endpoints show o", NOWHERE) == []
