"""Connecting to Postgres: every way to say where it is, and what is told when nobody is there."""

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.certificates import self_signed, serving
from tests.integration.cli.test_cli import fails, running, said, webhookd
from tests.sockets import quiet_port
from tests.waiting import until
from webhookd.errors import DsnUnusable, StoreUnavailable
from webhookd.store import wheel
from webhookd.store.database import Database, connect
from webhookd.store.dial import Dsn, dial, ignored, target
from webhookd.store.dsn import Located

ENDPOINT = '[endpoint.a]\nurl = "https://e.example/"\nevents = ["*"]\nsignature = "none"\n'
LOGIN = "planted-user:planted-password"


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's own environment."""
    for name in list(os.environ):
        if name.startswith(("PG", "WEBHOOKD_")):
            monkeypatch.delenv(name)


async def refused(dsn: Dsn) -> str:
    with pytest.raises(StoreUnavailable) as caught:
        await (await connect(dsn)).close()
    assert "planted" not in str(caught.value)
    async with Database(dsn, size=1) as database:
        with pytest.raises(StoreUnavailable) as again:
            await database.fetch("SELECT 1")
    assert str(again.value) == str(caught.value)
    return str(caught.value)


async def test_a_refused_connection_says_where_and_who_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    port = quiet_port()
    dsn = f"postgresql://{LOGIN}@127.0.0.1:{port}/shop"
    start = f"The database does not answer at 127.0.0.1:{port}"
    assert (await refused(dsn)).startswith(f"{start} (of [database] in the configuration): ")
    assert (await refused(Located(dsn, "/etc/webhookd/dsn"))).startswith(f"{start} (/etc/webhookd/dsn): ")
    assert (await refused(lambda: Located(dsn, "/etc/webhookd/dsn"))).startswith(f"{start} (/etc/webhookd/dsn): ")
    for name in ("WEBHOOKD_DSN", "WEBHOOKD_DATABASE__DSN", "WEBHOOKD_DATABASE__DIRECT_DSN"):
        with monkeypatch.context() as patched:
            patched.setenv(name, dsn)
            assert (await refused(dsn)).startswith(f"{start} (of ${name}): ")
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", str(port))
    assert (await refused(None)).startswith(f"{start} (of the PG* variables, as there is no DSN): ")
    assert (await refused("")).startswith(start)


async def test_without_any_dsn_the_ways_to_one_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(*_: object, **__: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("webhookd.store.dial.asyncpg.connect", nobody)
    said = await refused(None)
    assert "localhost (there is no DSN): Connection refused. Say where it is with WEBHOOKD_DSN=postgresql://…" in said
    assert said.endswith("with one of its own: `webhookd run --embedded DIR`, which prints its DSN.")
    monkeypatch.setattr(wheel, "find_spec", lambda _: None)
    assert (await refused(None)).endswith("or with dsn under [database].")
    assert (await refused("postgresql:///shop")).endswith("Connection refused.")
    monkeypatch.setenv("PGDATABASE", "shop")
    assert (await refused(None)).endswith("Connection refused.")


def test_a_mistake_in_a_variable_of_libpq_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, why in (
        ("PGPORT", "planted", "port wants a number from 1 to 65535"),
        ("PGSSLMODE", "planted", "sslmode wants disable"),
        ("PGREQUIREPEER", "planted", "requirepeer: nobody asks who owns a socket"),
    ):
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            for dsn in (None, "postgresql:///shop"):
                with pytest.raises(DsnUnusable) as caught:
                    target(dsn)
                assert str(caught.value).startswith(f"${name} cannot be used: {why}")
                assert "planted" not in str(caught.value)
            if name == "PGPORT":
                assert target("postgresql://h:7/shop").places[0].port == "7", "what the DSN says counts"
                with pytest.raises(DsnUnusable, match=r"^The DSN cannot be used"):
                    target("postgresql://h:77777/shop")


async def test_all_servers_that_were_tried_are_named() -> None:
    one, two = quiet_port(), quiet_port()
    said = await refused(f"postgresql://{LOGIN}@127.0.0.1:{one},localhost:{two}/shop?sslmode=disable")
    assert said.startswith(f"The database does not answer at 127.0.0.1:{one}, localhost:{two} (")
    said = await refused("postgresql:///shop?host=/nonexistent&port=7")
    assert said.startswith("The database does not answer at /nonexistent/.s.PGSQL.7 (")
    assert said.endswith("No such file or directory.")


async def test_one_that_is_silent_is_waited_for_as_long_as_connect_timeout_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        said = await refused(f"postgresql://127.0.0.1:{port}/x?connect_timeout=1&sslmode=disable")
    assert said.endswith(": nothing was heard for 1 s.")
    assert target("postgresql://a,b/x?connect_timeout=30").seconds == 60
    assert target("postgresql://a/x").seconds == target("postgresql://a/x?connect_timeout=0").seconds == 10
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "4")
    assert target("postgresql://a/x").seconds == 4


async def test_a_database_that_is_not_there_is_named(server: str) -> None:
    said = await refused(server.replace("/postgres?", "/nobody?"))
    assert 'database "nobody" does not exist at /' in said


@pytest.mark.parametrize(
    ("dsn", "why"),
    [
        (f'"postgresql://{LOGIN}@h/x"', "stands in quotes"),
        ("postgresql://planted-user:pl@planted@h/x", 'raw "@": write that as %40'),
        (
            "postgresql://h/x?sslmode=verify-full&sslrootcert=/nonexistent/ca.pem",
            "sslrootcert /nonexistent/ca.pem cannot",
        ),
        ("postgresql://h/x?service=shop", "service shop is not in "),
    ],
)
async def test_a_dsn_that_cannot_be_used_says_where_it_is_from(dsn: str, why: str) -> None:
    said = await refused(Located(dsn, "/etc/webhookd/dsn"))
    assert said.startswith("The DSN cannot be used (/etc/webhookd/dsn): ")
    assert why in said


async def test_full_verification_without_a_root_says_which_file_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    said = await refused("postgresql://h/x?sslmode=verify-full")
    assert f'root certificate file "{tmp_path}/.postgresql/root.crt" does not exist' in said
    assert "sslrootcert=FILE" in said
    assert "sslrootcert=system" in said


async def test_a_home_that_may_not_be_looked_into_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    real = Path.stat

    def stat(path: Path, **how: bool) -> os.stat_result:
        if str(path).startswith(f"{tmp_path}/"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **how)

    monkeypatch.setattr(Path, "stat", stat)
    said = await refused(f"postgresql://127.0.0.1:{quiet_port()}/x")
    assert said.startswith(f"The home directory {tmp_path} may not be looked into")
    assert "does not answer" in await refused(f"postgresql://127.0.0.1:{quiet_port()}/x?sslmode=disable")


# Forms of a DSN that lead to a server


def words(dsn: str) -> dict[str, str]:
    """Host, port and database of the tests' server."""
    parts = urlsplit(dsn)
    found = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    return {**found, "dbname": parts.path[1:], "user": parts.username or ""}


async def database_of(dsn: Dsn) -> str:
    async with Database(dsn, size=1) as database:
        return str((await database.fetch_row("SELECT current_database()::text"))[0])


async def test_words_of_libpq_lead_there(dsn: str) -> None:
    there = words(dsn)
    assert await database_of(" ".join(f"{name}='{value}'" for name, value in there.items())) == there["dbname"]


async def test_the_variables_of_libpq_lead_there(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = words(dsn)
    for name, value in there.items():
        monkeypatch.setenv({"dbname": "PGDATABASE"}.get(name, f"PG{name.upper()}"), value)
    monkeypatch.setenv("PGOPTIONS", "-c extra_float_digits=2")
    assert await database_of(None) == there["dbname"]
    connection = await connect(None)
    assert await connection.fetchval("SHOW extra_float_digits") == "2"
    await connection.close()


async def test_a_service_leads_there(dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = words(dsn)
    file = tmp_path / "services"
    file.write_text("[shop]\n" + "".join(f"{name}={value}\n" for name, value in there.items()))
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    assert await database_of("postgresql://?service=shop") == there["dbname"]
    monkeypatch.setenv("PGSERVICE", "shop")
    monkeypatch.setenv("PGHOST", "/nonexistent")  # which a service stands over
    assert await database_of(None) == there["dbname"]
    monkeypatch.delenv("PGSERVICEFILE")
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("PGSYSCONFDIR", str(tmp_path))
    file.rename(tmp_path / "pg_service.conf")
    assert await database_of(None) == there["dbname"]


async def test_what_providers_put_into_a_dsn_does_no_harm(dsn: str) -> None:
    more = (
        f"{dsn}&channel_binding=require&sslmode=require&gssencmode=disable&connect_timeout=5&keepalives=1"
        "&application_name=shop"
    )
    assert await database_of(more) == words(dsn)["dbname"]
    said = ignored(more)
    assert [sentence.split(" ")[0] for sentence in said] == ["channel_binding", "application_name"]
    assert all(sentence.endswith("(of [database] in the configuration)") for sentence in said)
    assert ignored("nonsense") == []


@asynccontextmanager
async def relayed(dsn: str) -> AsyncIterator[int]:
    """The tests' server at a port, as it has none."""
    there = words(dsn)
    tasks: set[asyncio.Task[object]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs = await asyncio.open_unix_connection(f"{there['host']}/.s.PGSQL.{there.get('port', '5432')}")
        tasks.add(asyncio.create_task(pump(theirs[0], writer)))
        tasks.add(asyncio.create_task(pump(reader, theirs[1])))

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", (1, None)),
        ("&keepalives=0", (0, None)),
        ("&keepalives_idle=17&keepalives_interval=5&keepalives_count=4&tcp_user_timeout=9000", (1, (17, 5, 4, 9000))),
    ],
)
async def test_keepalives_are_those_of_the_socket(
    dsn: str, more: str, expected: tuple[int, tuple[int, ...] | None]
) -> None:
    there = words(dsn)
    async with relayed(dsn) as port:
        text = f"postgresql://{there['user']}@127.0.0.1:{port}/{there['dbname']}?sslmode=disable{more}"
        connection = await dial(target(text))
        sock = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) == bool(expected[0])
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        if expected[1]:
            assert tuple(sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names) == expected[1]
        await connection.close()


# TLS, with a server that only begins it


@pytest.fixture
def certificate() -> tuple[str, str]:
    return self_signed()


@asynccontextmanager
async def beginning_tls(context: ssl.SSLContext) -> AsyncIterator[tuple[int, list[str]]]:
    """A server that says S, shakes hands and hangs up; its port, and the versions of TLS that were agreed on."""
    agreed: list[str] = []

    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"S")
        try:
            await writer.start_tls(context)
            agreed.append(writer.get_extra_info("ssl_object").version())
        except OSError:
            pass
        writer.close()

    async with await asyncio.start_server(behaviour, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], agreed


async def test_a_certificate_that_nobody_vouches_for_is_no_mistake_of_the_dsn(
    certificate: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "other.pem").write_text(self_signed("other")[0])
    async with beginning_tls(serving(*certificate)) as (port, _):
        for root in ("system", str(tmp_path / "other.pem")):
            said = await refused(f"postgresql://{LOGIN}@127.0.0.1:{port}/x?sslmode=verify-full&sslrootcert={root}")
            assert said.startswith(f"The database does not answer at 127.0.0.1:{port} (")
            assert "its certificate is not trusted (" in said


async def test_system_is_the_authorities_of_the_machine(
    certificate: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ca.pem").write_text(certificate[0])
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))  # which libpq heeds, too
    async with beginning_tls(serving(*certificate)) as (port, agreed):
        await refused(f"postgresql://127.0.0.1:{port}/x?sslrootcert=system")
        assert agreed
        agreed.clear()
        await refused(f"postgresql://127.0.0.1:{port}/x?sslrootcert=system&ssl_max_protocol_version=TLSv1.2")
        assert set(agreed) == {"TLSv1.2"}


# What commands say


def test_a_command_says_where_it_looked(tmp_path: Path) -> None:
    port = quiet_port()
    dsn = f"postgresql://{LOGIN}@127.0.0.1:{port}/shop"
    found = webhookd("status", env={"WEBHOOKD_DSN": dsn})
    fails(found, 69, f"The database does not answer at 127.0.0.1:{port} (of $WEBHOOKD_DSN): ")
    (tmp_path / "dsn").write_text(dsn)
    (tmp_path / "webhookd.toml").write_text('[database]\ndsn_file = "dsn"\n' + ENDPOINT)
    found = webhookd("status", "-c", tmp_path / "webhookd.toml")
    fails(found, 69, f"at 127.0.0.1:{port} ({tmp_path / 'dsn'}): ")
    assert "planted" not in found.stderr


def test_a_mistake_in_the_dsn_of_a_file_is_one_of_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "webhookd.toml"
    file.write_text('[database]\ndsn = "postgresql://u:pl@nted@h/x"\n' + ENDPOINT)
    found = webhookd("check", "-c", file)
    fails(found, 78, f'{file}:2: [database] dsn: its user or password has a raw "@": write that as %40')
    assert "nted" not in found.stderr


MISTAKEN = [
    (f'"postgresql://{LOGIN}@h/x"', "stands in quotes"),
    (f"mysql://{LOGIN}@h/x", "must begin with"),
    (f"postgresql://{LOGIN}@h:planted/x", "has a host or a port that cannot be read"),
    (f"postgresql://{LOGIN}@h:99999/x", "port wants a number from 1 to 65535"),
    ("postgresql://planted-user:pl@ant/ed@h/x", 'raw "@"'),
    ("postgres://USER:PASSWORD@HOST/db", "still has a placeholder"),
    (f"postgresql://{LOGIN}@h/x?service=shop", "service shop is not in"),
    ("planted", "must begin with"),
]


@pytest.mark.parametrize(("dsn", "why"), MISTAKEN)
def test_a_mistake_in_a_dsn_is_one_of_the_configuration_wherever_it_stands(dsn: str, why: str, tmp_path: Path) -> None:
    found = webhookd("status", env={"WEBHOOKD_DSN": dsn}, cwd=tmp_path)
    fails(found, 78, "The DSN cannot be used (of $WEBHOOKD_DSN): ", why)
    file = tmp_path / "webhookd.toml"
    file.write_text('[database]\ndsn_file = "dsn"\n' + ENDPOINT)
    (tmp_path / "dsn").write_text(dsn)
    again = webhookd("check", "-c", file)
    fails(again, 78, f"The DSN cannot be used ({tmp_path / 'dsn'}): ", why)
    for each in (found, again):
        assert each.stderr.count("\n") == 1
        assert "lant" not in each.stderr


def test_an_empty_dsn_is_told_and_not_taken_for_none(tmp_path: Path) -> None:
    for text in ("", " "):
        found = webhookd("status", env={"WEBHOOKD_DSN": text}, cwd=tmp_path)
        fails(found, 78, "webhookd: WEBHOOKD_DSN: is empty; write postgresql://… into it, or unset it\n")
    file = tmp_path / "webhookd.toml"
    file.write_text('[database]\ndsn_file = "dsn"\n' + ENDPOINT)
    (tmp_path / "dsn").write_text("\n")
    fails(webhookd("status", "-c", file), 78, f"webhookd: {tmp_path / 'dsn'}: is empty; write the DSN into it")


def test_run_ends_on_a_mistake_that_waiting_does_not_mend(tmp_path: Path) -> None:
    file = tmp_path / "webhookd.toml"
    file.write_text(ENDPOINT)
    found = webhookd("run", "-c", file, env={"PGPORT": "planted"})
    fails(found, 78, "webhookd: $PGPORT cannot be used: port wants a number")
    file.write_text('[database]\ndsn = "postgresql://h/x?service=shop"\n' + ENDPOINT)
    fails(webhookd("run", "-c", file), 78, f"cannot be used ([database] dsn of {file}): service shop is not in")
    file.write_text('[database]\ndirect_dsn = "postgresql://h/x?service=shop"\n' + ENDPOINT)
    for command in ("run", "check"):
        fails(webhookd(command, "-c", file), 78, f"cannot be used ([database] direct_dsn of {file}): service shop")


async def test_run_waits_for_a_file_that_is_written_anew(dsn: str, tmp_path: Path) -> None:
    file = tmp_path / "webhookd.toml"
    file.write_text('[database]\ndsn_file = "dsn"\n' + ENDPOINT)
    (tmp_path / "dsn").write_text("postgresql://USER:PASSWORD@HOST/x")
    async with running(file) as (daemon, log):
        line = await until(lambda: said(log, "waiting_for_database"), "it says that it waits")
        assert line["reason"].startswith(f"The DSN cannot be used ({tmp_path / 'dsn'}): still has a placeholder")
        (tmp_path / "dsn").write_text(dsn)
        await until(lambda: said(log, "started"), "it starts by itself")
        daemon.send_signal(signal.SIGTERM)
    assert daemon.returncode == 0
