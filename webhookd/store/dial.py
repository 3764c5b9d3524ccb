"""The one place that connects to Postgres: a DSN in, a connection out, or a sentence that says where there was none."""

import os
import random
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import asyncpg

from webhookd.errors import ConfigError, DsnUnusable, StoreUnavailable
from webhookd.store import libpq, wheel
from webhookd.store.dsn import Located, Place, for_asyncpg, parsed, places, service

CONNECT_TIMEOUT: Final = 10.0

# Where the database is, None for the PG* variables. A function is asked at each connect: passwords may be short-lived.
Dsn = str | None | Callable[[], str | None]

_VARIABLES: Final = ("WEBHOOKD_DSN", "WEBHOOKD_DATABASE__DSN", "WEBHOOKD_DATABASE__DIRECT_DSN")
_FILES: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_KEEPALIVES: Final = {
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}


class Target(NamedTuple):
    """What is connected to: the parameters of the DSN, of its service and of the environment, and where they are from.

    What a sentence about it shows is its places and its origin, never who logs in.
    """

    given: Mapping[str, str]
    origin: str
    advice: str = ""  # for when nobody is there

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(places(self.given))

    @property
    def seconds(self) -> float:
        """How long connecting may take."""
        each = int(self.given.get("connect_timeout", "0"))
        return float(each * max(len(self.places), 1)) if each > 0 else CONNECT_TIMEOUT

    @property
    def speaks_tls(self) -> bool:
        remote = any(not place.host.startswith("/") for place in self.places)
        return remote and self.given.get("sslmode") != "disable"

    def __str__(self) -> str:
        there = ", ".join(map(str, self.places)) or "the usual sockets of this machine, and localhost"
        return f"{there} ({self.origin})"


def target(dsn: Dsn) -> Target:
    """What a DSN means now. Raises DsnUnusable: what a file lacks may come."""
    try:
        text = dsn() if callable(dsn) else dsn
    except ConfigError as error:
        raise DsnUnusable(str(error)) from None
    around = libpq.of_environment(os.environ)
    origin = _origin(text, around)
    said: Mapping[str, str] = around  # of a DSN that cannot be read no variable is to blame
    try:
        said = parsed(text or "postgresql://")
        if name := said.get("service") or around.get("service"):
            said = {**_service(name), **said}
        given = {**around, **said}
        if mistake := libpq.mistake(given):
            raise ValueError(mistake)
        list(places(given))
    except ValueError as error:
        if variable := _to_blame(str(error), around, said):
            raise DsnUnusable(f"${variable} cannot be used: {error}.") from None
        raise DsnUnusable(f"The DSN cannot be used ({origin}): {error}.") from None
    return Target(given, origin, _beside_a_socket(given) if text or around else _advice())


def _to_blame(sentence: str, around: Mapping[str, str], said: Mapping[str, str]) -> str | None:
    """The variable of the environment that gave the parameter which a sentence begins with, if one did."""
    name = re.split(r"\W", sentence, maxsplit=1)[0]
    return libpq.PARAMETERS[name].variable if name in around and name not in said else None


def _advice() -> str:
    own = ", or run with one of its own: `webhookd run --embedded DIR`, which prints its DSN" if wheel.folder() else ""
    return f" Say where it is with WEBHOOKD_DSN=postgresql://…, or with dsn under [database]{own}."


def _beside_a_socket(given: Mapping[str, str]) -> str:
    """Whose server it is, where the socket is one of ours."""
    sockets = (Path(place.host) for place in places(given))
    if not any(each.name == wheel.SOCKETS and os.path.isdir(each.parent / "postgres") for each in sockets):
        return ""
    return " It belongs to a `webhookd run --embedded` or `webhookd demo`, and runs as long as that does."


def ignored(dsn: Dsn) -> list[str]:
    """A sentence for each parameter that has no effect; none of a DSN that cannot be used."""
    try:
        where = target(dsn)
    except StoreUnavailable:
        return []
    return [f"{sentence} ({where.origin})" for sentence in libpq.ignored(where.given)]


def _origin(text: str | None, around: Mapping[str, str]) -> str:
    if not text:
        return "of the PG* variables, as there is no DSN" if around else "there is no DSN"
    if named := next((name for name in _VARIABLES if os.environ.get(name, "").strip() == text.strip()), None):
        return f"of ${named}"
    return text.origin if isinstance(text, Located) else "of [database] in the configuration"


def _service(name: str) -> Mapping[str, str]:
    looked = []
    for file in _service_files():
        with suppress(FileNotFoundError, NotADirectoryError):
            looked.append(str(file))
            try:
                found = service(file.read_text("utf-8"), name)
            except (PermissionError, IsADirectoryError) as error:
                raise ValueError(f"{file} cannot be read: {error.strerror}") from None
            if found is not None:
                return found
    raise ValueError(f"service {name} is not in {' nor in '.join(looked) or 'any file'}")


def _service_files() -> Iterator[Path]:
    if own := os.environ.get("PGSERVICEFILE"):
        yield Path(own)
    else:
        with suppress(RuntimeError, KeyError):
            yield Path.home() / ".pg_service.conf"
    if folder := os.environ.get("PGSYSCONFDIR"):
        yield Path(folder) / "pg_service.conf"


async def dial(where: Target, **settings: Any) -> "asyncpg.Connection[Any]":
    """A connection; StoreUnavailable says which servers were tried, and where that was written."""
    _expect_readable(where)
    own = _context(where.given) if where.given.get("sslrootcert") == "system" else None
    dsn = for_asyncpg(where.given, random.shuffle, own_tls=own is not None)
    connection: asyncpg.Connection[Any]
    with _told(where):
        connection = await asyncpg.connect(dsn, ssl=own, timeout=where.seconds, **settings)
    _keep_alive(connection, where.given)
    return connection


def _expect_readable(where: Target) -> None:
    """Raise StoreUnavailable for a file that asyncpg would fail at without its name."""
    if not where.speaks_tls:
        return
    for name in _FILES:
        if (path := where.given.get(name)) and path != "system":
            try:
                Path(path).open("rb").close()
            except OSError as error:
                raise DsnUnusable(
                    f"The DSN cannot be used ({where.origin}): {name} {path} cannot be read: {error.strerror}."
                ) from None
    try:
        home = Path.home()
        (home / ".postgresql" / "postgresql.key").stat()
    except PermissionError:
        raise StoreUnavailable(
            f"The home directory {home} may not be looked into, where certificates for the database may be "
            "(.postgresql): set HOME to a directory of the user that runs webhookd, or use sslmode=disable."
        ) from None
    except (OSError, RuntimeError, KeyError):
        pass


def _context(given: Mapping[str, str]) -> ssl.SSLContext:
    """TLS that trusts the authorities of this machine, as sslrootcert=system says; asyncpg knows only files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_default_certs()
    context.minimum_version = _version(given.get("ssl_min_protocol_version", "TLSv1.2"))
    if most := given.get("ssl_max_protocol_version"):
        context.maximum_version = _version(most)
    context.set_alpn_protocols(["postgresql"])
    if certificate := given.get("sslcert"):
        context.load_cert_chain(certificate, given.get("sslkey"), given.get("sslpassword", ""))
    if revoked := given.get("sslcrl"):
        context.load_verify_locations(cafile=revoked)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    return context


def _version(name: str) -> ssl.TLSVersion:
    return ssl.TLSVersion[name.replace(".", "_")]


def _keep_alive(connection: "asyncpg.Connection[Any]", given: Mapping[str, str]) -> None:
    sock = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # there is no public way
    if sock is None or sock.family == socket.AF_UNIX:
        return
    if given.get("keepalives", "1") != "0":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, option in _KEEPALIVES.items():
        if (value := int(given.get(name, "0"))) > 0 and hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


@contextmanager
def _told(where: Target) -> Iterator[None]:
    """Around connecting: what goes wrong is told with the servers that were tried, and never with what was sent."""
    try:
        yield
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError) as error:
        raise StoreUnavailable(
            f"The database refuses us at {where}: {_sentence(error)}. Check user and password of the DSN."
        ) from error
    except asyncpg.InvalidCatalogNameError as error:
        raise StoreUnavailable(
            f"{_sentence(error)} at {where}: create it, or check the name of the database in the DSN."
        ) from error
    except ssl.SSLCertVerificationError as error:  # a ValueError, too
        raise StoreUnavailable(
            f"The database does not answer at {where}: its certificate is not trusted ({error.verify_message}). "
            "sslrootcert names the file of its authority, or is system."
        ) from error
    except asyncpg.ClientConfigurationError as error:
        raise DsnUnusable(f"The DSN cannot be used ({where.origin}): {_configured(error)}.") from None
    except TimeoutError as error:
        raise StoreUnavailable(
            f"The database does not answer at {where}: nothing was heard for {where.seconds:.0f} s."
        ) from error
    except (OSError, asyncpg.ConnectionDoesNotExistError) as error:
        why = getattr(error, "strerror", None) or _sentence(error)
        raise StoreUnavailable(f"The database does not answer at {where}: {why}.{where.advice}") from error
    except ValueError:
        raise DsnUnusable(f"The DSN cannot be used ({where.origin}): asyncpg cannot read it.") from None


def _configured(error: Exception) -> str:
    sentence = _sentence(error)
    if "root certificate" in sentence:
        return f"{sentence}; name one with sslrootcert=FILE, or write sslrootcert=system for those of this machine"
    return sentence


def _sentence(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
