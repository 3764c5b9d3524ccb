"""A DSN, as libpq reads it: a URI, or `key=value` words; and what asyncpg is asked for instead.

No sentence of this module holds a user, a password, or anything that may be a piece of one.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from webhookd.store import libpq

_SCHEMES: Final = ("postgresql://", "postgres://")
_PORT: Final = "5432"
_WORD: Final = re.compile(
    r"\s*([a-z_]+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'(?=\s|$)|((?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*|)(?=\s|$))\s*", re.S
)
_ESCAPED: Final = re.compile(r"\\(.)", re.S)
_HOST: Final = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]*)(?::([0-9]*))?")
# What documentation writes in the place of a value.
_PLACEHOLDER: Final = re.compile(
    r"<[A-Za-z][A-Za-z _-]*>|\$\{\w+\}|\$[A-Z_]{3,}|\{[a-z_]+\}|…|\.\.\.|\[?YOUR[-_ ]?[A-Z]+\]?"
    r"|USER|USERNAME|PASSWORD|HOST|HOSTNAME|PORT|DATABASE|DBNAME"
)
_NOT_ENCODED: Final = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_LEFT_OUT: Final = frozenset(name for name, each in libpq.PARAMETERS.items() if each.fate != "asyncpg")
# What belongs to a context of ours, where asyncpg makes none.
_TLS: Final = frozenset(name for name in libpq.PARAMETERS if name.startswith("ssl") and name != "sslnegotiation")


class Located(str):
    """A text, such as a DSN, that knows where it was read."""

    origin: str

    def __new__(cls, text: str, origin: str) -> "Located":
        made = super().__new__(cls, text)
        made.origin = origin
        return made


class Place(NamedTuple):
    """One of the servers that a DSN names: a host or the directory of a socket, and a port."""

    host: str
    port: str

    def __str__(self) -> str:
        if self.host.startswith("/"):
            return f"{self.host}/.s.PGSQL.{self.port}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parsed(text: str) -> dict[str, str]:
    """The parameters that a DSN has; ValueError, a sentence, when it cannot be read or used."""
    text = text.strip()
    if text[:1] in ('"', "'"):
        raise ValueError("stands in quotes, which are a part of it in a file for docker or systemd: remove them")
    scheme = next((each for each in _SCHEMES if text.startswith(each)), None)
    if scheme:  # before it is taken to pieces, which PORT or <port> would not survive
        _expect_values(re.split("[:/@?&=,]", text.removeprefix(scheme)))
    given = _of_uri(text.removeprefix(scheme)) if scheme else _of_words(text)
    _expect_values(given.values())
    given = {name: value for name, value in given.items() if value}
    if mistake := libpq.mistake(given):
        raise ValueError(mistake)
    list(places(given))
    return given


def _expect_values(texts: Iterable[str]) -> None:
    if any(map(_PLACEHOLDER.fullmatch, texts)):
        raise ValueError("still has a placeholder, such as USER, <password> or …: write in its place what is yours")


def _of_words(text: str) -> dict[str, str]:
    given: dict[str, str] = {}
    at = 0
    while at < len(text):
        if (word := _WORD.match(text, at)) is None:
            if given or "=" in text.partition(" ")[0].partition("://")[0]:
                raise ValueError("has words that are no name=value; a value with blanks is written 'in quotes'")
            raise ValueError('must begin with "postgresql://", or be words such as host=… dbname=…')
        name, quoted, plain = word.groups()
        if name not in libpq.PARAMETERS and "password" in given:  # it may be a piece of that
            raise ValueError("has words that are no name=value; a value with blanks is written 'in quotes'")
        given[name] = _ESCAPED.sub(r"\1", plain if quoted is None else quoted)
        at = word.end()
    return given


def _of_uri(text: str) -> dict[str, str]:
    # As libpq has it: the first "@" ends user and password, unless a "/" comes before it.
    user, _, rest = text.partition("@") if "@" in text.partition("/")[0] else ("", "", text)
    authority = re.split(r"[/?]", rest, maxsplit=1)[0]
    path, _, query = rest[len(authority) :].partition("?")
    if "@" in authority:
        raise ValueError('its user or password has a raw "@": write that as %40')
    if "@" in path and not user:
        raise ValueError('its user or password has a raw "/": write that as %2F')
    if "@" in path or "@" in query:  # what stands for the host may be a piece of the password
        raise ValueError('has a raw "@" behind the host: write "@" as %40 and, in user and password, "/" as %2F')
    given: dict[str, str] = {}
    name, _, password = user.partition(":")
    hosts = [_HOST.fullmatch(each) for each in authority.split(",")] if authority else []
    if not all(hosts):
        raise ValueError("has a host or a port that cannot be read; signs such as : / ? # [ ] @ % are percent-encoded")
    given["host"] = ",".join(_decoded((each[1] or "").strip("[]")) for each in hosts if each)
    given["port"] = ",".join(each[2] or "" for each in hosts if each).strip(",") and ",".join(
        each[2] or _PORT for each in hosts if each
    )
    given |= {"dbname": _decoded(path[1:]), "user": _decoded(name), "password": _decoded(password)}
    for part in query.split("&") if query else ():
        key, equals, value = part.partition("=")
        if not equals or not re.fullmatch("[a-z_]+", key):
            raise ValueError('wants name=value behind its "?", with & between them')
        given[key] = _decoded(value)
    if given.get("ssl") == "true":  # as JDBC has it, and libpq too
        given = {key: value for key, value in given.items() if key != "ssl"} | {"sslmode": "require"}
    return given


def _decoded(text: str) -> str:
    if _NOT_ENCODED.search(text):
        raise ValueError('has a raw "%", which begins a percent-encoded sign: write it as %25')
    return unquote(text)


def service(text: str, name: str) -> dict[str, str] | None:
    """What a service file says of a service, or None when it is not there; ValueError when that cannot be used."""
    found: dict[str, str] | None = None
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            if found is not None:
                break
            found = {} if line == f"[{name}]" else None
        elif found is not None and line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            if not equals or key == "service":
                raise ValueError(f"service {name}: there must be name=value in each line")
            found[key.strip()] = value.strip()
    if found is not None and (mistake := libpq.mistake(found)):
        raise ValueError(f"service {name}: {mistake}")
    return found


def places(given: Mapping[str, str]) -> Iterator[Place]:
    """The servers that are tried, in order; none when nothing says where. ValueError when they cannot be told."""
    hosts = given.get("host", "").split(",") if given.get("host") else []
    ports = given.get("port", "").split(",") if given.get("port") else [_PORT]
    if not all(re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536 for port in ports):
        raise ValueError("port wants a number from 1 to 65535, or one for each host")
    if hosts and len(ports) not in (1, len(hosts)):
        raise ValueError(f"has {len(ports)} ports for {len(hosts)} hosts; give one, or one for each")
    for number, host in enumerate(hosts):
        if not host or host.startswith("@"):
            raise ValueError("has a host that is empty, or an abstract socket; name them all")
        yield Place(host, ports[number % len(ports)])


def for_asyncpg(
    given: Mapping[str, str], shuffle: Callable[[MutableSequence[Place]], object], *, own_tls: bool = False
) -> str:
    """The same for asyncpg, which knows fewer parameters and fewer ways to write them.

    With `own_tls` nothing about TLS is in it, as a context is handed over.
    """
    there = list(places(given))
    if given.get("load_balance_hosts") == "random":
        shuffle(there)
    left_out = _LEFT_OUT | (_TLS if own_tls else frozenset())
    passed = {name: value for name, value in given.items() if name not in left_out and value}
    if there:
        passed["host"] = ",".join(f"[{each.host}]" if ":" in each.host else each.host for each in there)
        passed["port"] = ",".join(each.port for each in there)
    return "postgresql://?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in passed.items())
