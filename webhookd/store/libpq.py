"""Every parameter of libpq 18, and what becomes of it here.

asyncpg takes what it does not know for a setting of the server, which then refuses the connection. So each parameter is
honoured, by asyncpg or by us, ignored with a sentence, or refused with one. docs/database.md has the table.
"""

from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple

Fate = Literal["asyncpg", "webhookd", "ignored", "refused"]


class Parameter(NamedTuple):
    """`says`: how it is honoured, or why it is not. `harmless`: values by which nothing is lost, so nothing is said."""

    variable: str | None
    fate: Fate
    says: str = ""
    harmless: tuple[str, ...] = ()
    values: tuple[str, ...] = ()  # all that there are; none: any text


_NUMBER: Final = "a whole number"
_OFF: Final = ("0", "off", "false", "no")
_ON: Final = ("1", "on", "true", "yes")
_VERSIONS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
_OAUTH: Final = (
    "logging in with OAuth is not supported; use a password, a certificate, or dsn_file for short-lived ones"
)
_SCRAM: Final = "keys of SCRAM are not supported; give the password"

PARAMETERS: Final[Mapping[str, Parameter]] = {
    "host": Parameter("PGHOST", "asyncpg", "names, addresses or directories of sockets; several have commas"),
    "hostaddr": Parameter("PGHOSTADDR", "refused", "write the address as host"),
    "port": Parameter("PGPORT", "asyncpg", "one, or one for each host"),
    "dbname": Parameter("PGDATABASE", "asyncpg"),
    "user": Parameter("PGUSER", "asyncpg"),
    "password": Parameter("PGPASSWORD", "asyncpg"),
    "passfile": Parameter("PGPASSFILE", "asyncpg", "else ~/.pgpass; ignored when others may read it"),
    "service": Parameter("PGSERVICE", "webhookd", "read from $PGSERVICEFILE, ~/.pg_service.conf, or in $PGSYSCONFDIR"),
    "connect_timeout": Parameter(
        "PGCONNECT_TIMEOUT", "webhookd", "seconds for each host, instead of 10; 0 is 10", values=(_NUMBER,)
    ),
    "options": Parameter("PGOPTIONS", "asyncpg", "what webhookd pins itself wins"),
    "application_name": Parameter("PGAPPNAME", "ignored", "sessions are named webhookd, as others look for them"),
    "fallback_application_name": Parameter(None, "ignored", "sessions are named webhookd", ("webhookd",)),
    "client_encoding": Parameter(
        "PGCLIENTENCODING", "ignored", "it is always UTF8", ("UTF8", "utf8", "UTF-8", "utf-8")
    ),
    "target_session_attrs": Parameter(
        "PGTARGETSESSIONATTRS",
        "asyncpg",
        "of several hosts it is read-write unless said otherwise",
        values=("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    ),
    "load_balance_hosts": Parameter(
        "PGLOADBALANCEHOSTS", "webhookd", "the order of hosts, anew for each connection", values=("disable", "random")
    ),
    "keepalives": Parameter(None, "webhookd", values=("0", "1")),
    "keepalives_idle": Parameter(None, "webhookd", "seconds", values=(_NUMBER,)),
    "keepalives_interval": Parameter(None, "webhookd", "seconds", values=(_NUMBER,)),
    "keepalives_count": Parameter(None, "webhookd", values=(_NUMBER,)),
    "tcp_user_timeout": Parameter(None, "webhookd", "milliseconds", values=(_NUMBER,)),
    "sslmode": Parameter(
        "PGSSLMODE", "asyncpg", values=("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
    ),
    "sslnegotiation": Parameter("PGSSLNEGOTIATION", "asyncpg", values=("postgres", "direct")),
    "sslrootcert": Parameter(
        "PGSSLROOTCERT",
        "asyncpg",
        "else ~/.postgresql/root.crt; webhookd adds `system`: the authorities of the machine",
    ),
    "sslcert": Parameter("PGSSLCERT", "asyncpg", "else ~/.postgresql/postgresql.crt"),
    "sslkey": Parameter("PGSSLKEY", "asyncpg", "else ~/.postgresql/postgresql.key"),
    "sslpassword": Parameter(None, "asyncpg"),
    "sslcrl": Parameter("PGSSLCRL", "asyncpg", "else ~/.postgresql/root.crl"),
    "sslcrldir": Parameter("PGSSLCRLDIR", "refused", "put the lists into one file and name that with sslcrl"),
    "ssl_min_protocol_version": Parameter("PGSSLMINPROTOCOLVERSION", "asyncpg", values=_VERSIONS),
    "ssl_max_protocol_version": Parameter("PGSSLMAXPROTOCOLVERSION", "asyncpg", values=_VERSIONS),
    "sslcompression": Parameter("PGSSLCOMPRESSION", "ignored", "TLS is never compressed", _OFF),
    "sslsni": Parameter("PGSSLSNI", "ignored", "the name of the host is always sent", _ON),
    "sslcertmode": Parameter(
        "PGSSLCERTMODE",
        "refused",
        "leave it out; a certificate is shown where there is one and the server asks",
        ("allow",),
    ),
    "sslkeylogfile": Parameter(None, "ignored", "only the variable SSLKEYLOGFILE does that"),
    "channel_binding": Parameter(
        "PGCHANNELBINDING",
        "ignored",
        "asyncpg has none; sslmode=verify-full is what keeps others from standing in between",
        ("prefer", "disable"),
        ("require", "prefer", "disable"),
    ),
    "require_auth": Parameter(
        "PGREQUIREAUTH", "refused", "asyncpg answers as the server asks; use sslmode=verify-full"
    ),
    "requirepeer": Parameter("PGREQUIREPEER", "refused", "nobody asks who owns a socket; leave it out"),
    "gssencmode": Parameter(
        "PGGSSENCMODE", "refused", "encryption by GSSAPI is not supported; use TLS", ("prefer", "disable")
    ),
    "krbsrvname": Parameter("PGKRBSRVNAME", "asyncpg", "with the package gssapi"),
    "gsslib": Parameter("PGGSSLIB", "asyncpg", values=("gssapi",)),
    "gssdelegation": Parameter("PGGSSDELEGATION", "ignored", "no credentials are handed on", ("0",)),
    "min_protocol_version": Parameter("PGMINPROTOCOLVERSION", "refused", "3.0 is all that asyncpg speaks", ("3.0",)),
    "max_protocol_version": Parameter(
        "PGMAXPROTOCOLVERSION", "ignored", "3.0 is all that asyncpg speaks", ("3.0", "3.2", "latest")
    ),
    "replication": Parameter(None, "refused", "webhookd reads tables; leave it out", _OFF),
    "scram_client_key": Parameter(None, "refused", _SCRAM),
    "scram_server_key": Parameter(None, "refused", _SCRAM),
    "oauth_issuer": Parameter(None, "refused", _OAUTH),
    "oauth_client_id": Parameter(None, "refused", _OAUTH),
    "oauth_client_secret": Parameter(None, "refused", _OAUTH),
    "oauth_scope": Parameter(None, "refused", _OAUTH),
}


def of_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the variables say, as libpq reads them."""
    return {
        name: environ[each.variable]
        for name, each in PARAMETERS.items()
        if each.variable is not None and environ.get(each.variable)
    }


def mistake(given: Mapping[str, str]) -> str | None:
    """Why these parameters cannot be used, in a sentence that shows no value, or None."""
    for name, value in given.items():
        if (known := PARAMETERS.get(name)) is None:
            return f"libpq has no parameter {name}; leave it out, or write it into options where it is a setting"
        if known.fate == "refused" and value not in known.harmless:
            return f"{name}: {known.says}"
        if known.values and not _is_one(value, known.values):
            return f"{name} wants {', '.join(known.values)}"
    if given.get("sslrootcert") == "system" and given.get("sslmode", "verify-full") != "verify-full":
        return "sslrootcert=system goes with sslmode=verify-full alone, as anybody may have a certificate of those"
    return None


def ignored(given: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each parameter that has no effect."""
    for name, value in given.items():
        known = PARAMETERS.get(name)
        if known is not None and known.fate == "ignored" and value not in known.harmless:
            yield f"{name} has no effect: {known.says}"


def _is_one(value: str, values: tuple[str, ...]) -> bool:
    if values == (_NUMBER,):
        return len(value) < 10 and value.removeprefix("-").isdecimal() and value.isascii()
    return value in values


def page() -> Iterator[str]:
    """The table of docs/database.md."""
    yield "| parameter | variable | what becomes of it |"
    yield "|---|---|---|"
    for name, each in PARAMETERS.items():
        spared = f", except {', '.join(each.harmless)}" if each.harmless else ""
        fate = {
            "asyncpg": "honoured",
            "webhookd": "honoured, by webhookd itself",
            "ignored": f"ignored, and told once{spared}",
            "refused": f"refused{spared}",
        }[each.fate]
        variable = f"`{each.variable}`" if each.variable else ""
        yield f"| `{name}` | {variable} | {fate}{f': {each.says}' if each.says else ''} |"
