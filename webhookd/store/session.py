"""What no statement of ours may leave to the defaults of a server, a database or a role."""

from typing import Any

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
