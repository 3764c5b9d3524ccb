"""What README and docs show: their SQL runs, their configuration loads, their links and commands exist."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import typer
from standardwebhooks import Webhook

from tests.integration.conftest import Receiver, Running, Sql, configuration, eventually
from webhookd.cli.main import app
from webhookd.config import loader
from webhookd.model import Endpoint, Event
from webhookd.policy.endpoint_state import EndpointState
from webhookd.policy.matching import why_not

REPOSITORY = Path(__file__).parents[2]
README, DOCS = REPOSITORY / "README.md", REPOSITORY / "docs"
PRODUCING, RECEIVING, STATES = DOCS / "producing.md", DOCS / "receiving.md", DOCS / "states.md"
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
WRITTEN = [
    README,
    PRODUCING,
    RECEIVING,
    STATES,
    DOCS / "comparison.md",
]  # the others are made, or have tests of their own
COMMAND = "webhookd"


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def block_with(page: Path, language: str, what: str) -> str:
    (found,) = [block for block in blocks(page, language) if what in block]
    return found


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


SQL = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in (README, PRODUCING)
    for number, block in enumerate(blocks(page, "sql"), 1)
]


# SQL


def test_there_is_sql_to_run() -> None:
    assert len(blocks(PRODUCING, "sql")) >= 6
    assert len(blocks(README, "sql")) >= 2


@pytest.mark.parametrize("block", SQL)
async def test_sql_runs_as_it_stands(block: str, shop: Sql) -> None:
    await shop.execute(block)


async def test_the_inserts_are_events(shop: Sql) -> None:
    for block in blocks(PRODUCING, "sql"):
        if "CREATE" not in block:
            await shop.execute(block)
    rows = await shop.fetch(
        "SELECT type, payload, tenant, ordering_key, deliver_after FROM webhookd.outbox ORDER BY id"
    )
    assert [row["type"] for row in rows] == [*["order.paid"] * 2, *["order.archived"] * 2, "trial.ends"]
    assert rows[0]["payload"] == '{"order": 42, "total": 1.10}'
    assert (rows[1]["tenant"], rows[2]["ordering_key"]) == ("acme", "7")
    assert rows[4]["deliver_after"] is not None
    assert await shop.fetchval("SELECT status FROM orders WHERE id = 42") == "paid"


async def test_the_columns_are_those_of_a_producer(shop: Sql) -> None:
    table = PRODUCING.read_text().split("### The columns you may write")[1].split("###")[0]
    written = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    granted = await shop.fetch(
        """SELECT column_name FROM information_schema.role_column_grants
            WHERE grantee = 'webhookd_producer' AND table_name = 'outbox' AND privilege_type = 'INSERT'"""
    )
    assert written == {row["column_name"] for row in granted}


async def test_the_types_and_bounds_of_the_columns_are_those_of_the_table(shop: Sql) -> None:
    page = PRODUCING.read_text()
    types = await shop.fetch(
        """SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
            WHERE attrelid = 'webhookd.outbox'::regclass AND attnum > 0"""
    )
    short = {"timestamp with time zone": "timestamptz"}
    there = {name: short.get(type_, type_) for name, type_ in types}
    written = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE))
    assert len(written) == 8
    assert written.items() <= there.items()
    bounds = await shop.fetch(
        """SELECT conname FROM pg_constraint WHERE conrelid = 'webhookd.outbox'::regclass AND contype = 'c'
              AND conname NOT LIKE 'created_at %'"""  # which producers do not write
    )
    table = page.split("| refused |")[1].split("\n\n")[0]
    told = re.findall(r"^\| [^|]* \| `([^`|]*)`", table, re.MULTILINE)
    assert {row[0] for row in bounds} < set(told)


@pytest.mark.parametrize(
    ("values", "state", "sentence"),
    [
        ("repeat('t', 513), '{}'", "23514", "type may have 512 characters at most"),
        ("'webhookd.x', '{}'", "23514", "types that begin with webhookd. are those of our own events"),
        ("'t', '{}', event_id => 'a b'", "23514", "outbox_event_id_check"),
        ("'t', '{}', metadata => to_json(repeat('m', 16384))", "23514", "metadata may have 16 KiB at most"),
        ("'t', '{}', deliver_after => 'infinity'", "23514", "deliver_after must lie in the years 1 to 9999"),
        ("NULL, '{}'", "23502", "null value in column"),
        ("'t', '{}', tenant => NULL", "23502", "null value in column"),
        ("'t', '{'", "22P02", "invalid input syntax for type json"),
    ],
)
async def test_what_the_page_says_is_refused_is(shop: Sql, values: str, state: str, sentence: str) -> None:
    assert sentence in PRODUCING.read_text()
    assert state in PRODUCING.read_text()
    with pytest.raises(asyncpg.PostgresError) as caught:
        await shop.execute(f"SELECT webhookd.emit({values})")
    assert caught.value.sqlstate == state
    assert sentence in str(caught.value)


async def test_what_the_page_says_is_taken_is(shop: Sql) -> None:
    for values in ("'a b', '{}'", "'order.*', '{}'", "'t', '{}', tenant => '*'", "'t', '{}', metadata => '[1]'"):
        await shop.execute(f"SELECT webhookd.emit({values})")


# Another outbox


@pytest.fixture
async def fed(shop: Sql) -> Sql:
    """The same with the trigger, as an application that has the rights of a producer and no more."""
    await shop.execute(block_with(PRODUCING, "sql", "CREATE TRIGGER"))
    await shop.execute(block_with(PRODUCING, "sql", "GRANT"))
    await shop.execute("SET ROLE my_app")
    return shop


FILL = """
INSERT INTO outbox VALUES (gen_random_uuid(), 'order', '42', 'OrderPaid', $1),
                          (gen_random_uuid(), 'user', '7', 'Left', NULL)
"""


async def copied(sql: Sql) -> list[asyncpg.Record]:
    await sql.execute("RESET ROLE")
    return await sql.fetch("SELECT * FROM webhookd.outbox ORDER BY id")


async def test_the_trigger_copies_every_row_of_debeziums_outbox(fed: Sql) -> None:
    await fed.execute(FILL, '{"order": 42}')
    ids = {str(row["id"]): row["aggregateid"] for row in await fed.fetch("SELECT * FROM outbox")}
    order, user = await copied(fed)
    assert (order["type"], order["payload"], order["ordering_key"]) == ("order.OrderPaid", '{"order": 42}', "42")
    assert (user["type"], user["payload"], user["ordering_key"]) == ("user.Left", "null", "7")
    assert json.loads(order["metadata"]) == {"aggregate": "order"}
    assert {row["event_id"]: row["ordering_key"] for row in (order, user)} == ids


async def test_a_row_that_is_deleted_at_once_is_copied(fed: Sql) -> None:
    async with fed.transaction():
        await fed.execute(FILL, "{}")
        await fed.execute("DELETE FROM outbox")
    assert len(await copied(fed)) == 2


async def test_what_is_rolled_back_is_not_copied(fed: Sql) -> None:
    transaction = fed.transaction()
    await transaction.start()
    await fed.execute(FILL, "{}")
    await transaction.rollback()
    assert await copied(fed) == []


async def test_the_payload_may_be_text(fed: Sql) -> None:
    await fed.execute("RESET ROLE")
    await fed.execute("ALTER TABLE outbox ALTER payload TYPE text")
    await fed.execute("SET ROLE my_app")
    await fed.execute(FILL, '{"total": 1.10}')
    assert (await copied(fed))[0]["payload"] == '{"total": 1.10}'


async def test_without_the_rights_the_insert_of_the_application_fails(fed: Sql) -> None:
    await fed.execute("RESET ROLE")
    await fed.execute("REVOKE webhookd_producer FROM my_app")
    await fed.execute("SET ROLE my_app")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await fed.execute(FILL, "{}")


# Configuration


def loaded(directory: Path, toml: str) -> list[Endpoint]:
    (directory / "webhookd.toml").write_text("")
    (directory / "endpoints.d").mkdir()
    (directory / "endpoints.d" / "readme.toml").write_text(toml)
    return list(loader.load(directory / "webhookd.toml", {}).endpoints)


def test_the_endpoint_of_the_readme_loads(tmp_path: Path) -> None:
    (toml,) = blocks(README, "toml")
    (endpoint,) = loaded(tmp_path, toml)
    assert (endpoint.name, endpoint.url, endpoint.events) == (
        "orders",
        "https://example.com/webhooks",
        ("order.*", "invoice.paid"),
    )


def test_the_first_endpoint_is_that_of_listen(tmp_path: Path) -> None:
    script = block_with(README, "sh", "webhookd listen")
    toml = re.findall(r"<<'END'\n(.*?)^END$", script, re.MULTILINE | re.DOTALL)[0]
    (tmp_path / "endpoints.d").mkdir()
    (tmp_path / "endpoints.d" / "listen.secret").write_text(_secret())
    (tmp_path / "endpoints.d" / "listen.toml").write_text(toml)
    (tmp_path / "webhookd.toml").write_text('[egress]\nallow_http = true\nallow_networks = ["127.0.0.0/8"]\n')
    (endpoint,) = loader.load(tmp_path / "webhookd.toml", {}).endpoints
    port = re.findall(r"--port (\d+)", script)[0]
    assert endpoint.url == f"http://127.0.0.1:{port}/"


def test_what_the_trigger_makes_reaches_who_subscribes_as_the_page_says(tmp_path: Path) -> None:
    patterns = re.findall(r'events = (\["order\.\*"\])', PRODUCING.read_text())
    toml = f'[endpoint.x]\nurl = "https://example.com/"\nsignature = "none"\nevents = {patterns[0]}\n'
    (endpoint,) = loaded(tmp_path, toml)
    event = Event(1, "", None, "order.OrderPaid", "", None, None, None, 2)  # type: ignore[arg-type]  # the time is not looked at
    assert why_not(endpoint, event) is None


# Receiving


def _secret() -> str:
    secrets = set(re.findall(r"whsec_[A-Za-z0-9+/=]{24,}", RECEIVING.read_text() + README.read_text()))
    (secret,) = secrets
    return str(secret)


async def test_what_is_sent_is_verified_by_the_official_library_with_that_secret(
    sql: Sql, daemon: Running, receiver: Receiver
) -> None:
    config = configuration({"hook": {"url": receiver.url("hook"), "secret": _secret()}})

    async def arrived() -> bool:
        return bool(receiver.got)

    async with daemon(config):
        await sql.execute(block_with(README, "sql", "INSERT"))
        await eventually(arrived, "a request")
    got = receiver.got[0]
    verified = Webhook(_secret()).verify(got.body, dict(got.headers))
    assert verified["data"] == {"order": 42, "total": 1.10}
    shown = block_with(RECEIVING, "http", "webhook-id")
    assert set(re.findall(r"^([a-z-]+): ", shown, re.MULTILINE)) <= got.headers.keys()
    assert list(verified) == list(json.loads(shown.split("\n\n")[1]))


def test_secrets_are_visibly_fake() -> None:
    for page in PAGES:
        assert re.findall(r"(?:whsec|whsk)_(?!dGhpcy1pcy1hLWZha2Ut)[A-Za-z0-9+/]{8,}", page.read_text()) == []


# States


def test_every_state_has_its_row() -> None:
    endpoint, delivery = STATES.read_text().split("## Of a delivery")
    assert sorted(re.findall(r"^\| `(\w+)` \|", endpoint, re.MULTILINE)) == sorted(EndpointState)
    delivered = ["delivered", "retrying", "exhausted", "rejected", "held", "parked", "missed"]
    assert re.findall(r"^\| `(\w+)` \|", delivery, re.MULTILINE) == delivered


# Links and commands


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{page.name}: {target}"


def lines_of_commands(page: Path) -> Iterator[list[str]]:
    """The words that follow `webhookd` wherever a page runs it, in code of a line and in blocks for a shell."""
    texts = re.findall(r"`([^`\n]+)`", prose(page))
    texts += [
        line
        for block in blocks(page, "sh")
        for line in re.sub(r"<<'END'.*?^END$", "", block, flags=re.M | re.S).splitlines()
    ]
    for text in texts:
        for part in re.split(r"&&|\|", text.partition(" #")[0]):
            try:
                words = shlex.split(part)
            except ValueError:
                continue
            at = [number for number, word in enumerate(words) if word == COMMAND or word.endswith(f"/bin/{COMMAND}")]
            if at and all("=" in word or word in ("sudo", "runuser", "-u", "--", COMMAND) for word in words[: at[-1]]):
                yield words[at[-1] + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist(page: Path) -> None:
    root: Any = typer.main.get_command(app)
    for words in lines_of_commands(page):
        if not words:
            continue
        command, rest = root, list(words)
        while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
            assert rest[0] in command.commands, f"{page.name}: webhookd {shlex.join(words)}"
            command = command.commands[rest.pop(0)]
        options = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        } | {"--help"}
        for word in rest:
            if re.match(r"-[-\w]", word):
                assert word.partition("=")[0] in options, f"{page.name}: webhookd {shlex.join(words)}"


def test_the_pages_mention_every_command() -> None:
    root: Any = typer.main.get_command(app)
    mentioned = {words[0] for page in PAGES for words in lines_of_commands(page) if words}
    assert mentioned >= set(root.commands)


def test_the_two_commands_stand_at_the_start_of_a_line() -> None:
    lines = README.read_text().splitlines()
    for what in ("webhookd demo", "pytest -q -n3 tests/fault"):
        (line,) = [
            line
            for line in lines
            if line.startswith("python3 -m venv .venv && ") and line.endswith(f".venv/bin/{what}")
        ]
        assert " -e '.[" in line


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.stem)
def test_lines_are_short(page: Path) -> None:
    assert [line for line in page.read_text().splitlines() if len(line) > 150] == []
