"""What no statement of ours may leave to the defaults of a server, a database or a role."""

from typing import Any

import asyncpg

# Values, as SQL has them, of the settings that our statements depend on. Not default_transaction_read_only, by which
# some services say that a server is not to be written to, nor what only makes things faster or slower.
PINNED = {
    "search_path": "pg_catalog, pg_temp",
    "DateStyle": "'ISO'",
    "IntervalStyle": "'postgres'",
    "TimeZone": "'UTC'",
    "standard_conforming_strings": "on",
    "bytea_output": "hex",
    "row_security": "off",  # rows that a policy would hide are an error
    "statement_timeout": "0",  # ours are on our side
    "lock_timeout": "0",
    "jit": "off",  # to compile costs more than any statement of ours, whatever makes a planner think that one is large
}
LASTING = {  # what only a session that is ours alone can have; transactions through a pooler are begun accordingly
    "default_transaction_isolation": "'read committed'",
    "default_transaction_deferrable": "off",
    "idle_session_timeout": "0",
}


def pins(connection: Any, *, local: bool = False) -> str:
    """The statements that pin all of it, for the session or for the transaction they are in."""
    settings = PINNED if local else PINNED | LASTING
    if connection.get_server_version() >= (17,):
        settings = settings | {"transaction_timeout": "0"}
    set_ = "SET LOCAL" if local else "SET"
    return "".join(f"{set_} {name} = {value};" for name, value in settings.items())


async def prepare(connection: "asyncpg.Connection[Any]") -> None:
    """Have JSON come and go as it is."""
    # As bytes and never parsed: what Postgres holds is what the receiver gets.
    for type_ in ("json", "jsonb"):
        await connection.set_type_codec(
            type_, schema="pg_catalog", encoder=_json_out[type_], decoder=_json_in[type_], format="binary"
        )


_json_out = {"json": bytes, "jsonb": lambda text: b"\x01" + text}
_json_in = {"json": bytes, "jsonb": lambda data: data[1:]}


async def learn_types(connection: "asyncpg.Connection[Any]") -> None:
    """Let asyncpg ask for all types that our statements have, once, in a transaction that is rolled back.

    It switches `jit` off meanwhile, for the session, and would leave that behind on a connection that others use.
    """
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.prepare(
            "SELECT $1::int2[], $2::int4[], $3::int8[], $4::float8[], $5::timestamptz[], $6::bytea[]"
        )
    finally:
        await transaction.rollback()


def expect_primary(connection: "asyncpg.Connection[Any]") -> None:
    """Raise ReadOnlySQLTransactionError for a server that says it is read-only."""
    settings = connection.get_settings()
    if "on" in (getattr(settings, "in_hot_standby", ""), getattr(settings, "default_transaction_read_only", "")):
        raise asyncpg.ReadOnlySQLTransactionError


async def is_pooled(connection: "asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]") -> bool:
    """True when a pooler stands between us and the server, which has another PID than the one that answered us.

    By the simple protocol, which leaves no prepared statement on whatever connection it reaches.
    """
    pid = connection.get_server_pid()
    return await connection.execute(f"SELECT WHERE pg_catalog.pg_backend_pid() = {pid}") == "SELECT 0"
