"""The one place where errors of Postgres and of its driver become ours."""

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from webhookd.errors import (
    SchemaMismatch,
    StoreConflict,
    StoreDamaged,
    StoreForbidden,
    StoreRefused,
    StoreTaken,
    StoreUnavailable,
    WebhookdError,
)

NO_ROW_SECURITY = (
    "No policy helps: `ALTER TABLE … DISABLE ROW LEVEL SECURITY`, or `ALTER ROLE … BYPASSRLS` for the daemon's role, "
    "and for the owner of the schema where it is FORCED."
)

_MISSING = (
    asyncpg.UndefinedTableError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedColumnError,
)
# It lies in the data: what is written, or what is there, damaged (SQLSTATE XX...) or such as Python has no value for.
_REFUSED = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.InternalServerError,
    asyncpg.StatementTooComplexError,
    asyncpg.ProgramLimitExceededError,
    OverflowError,
    UnicodeError,
)
_CONFLICTS = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
UNAVAILABLE = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


@contextmanager
def translated() -> Iterator[None]:
    """Raise StoreUnavailable, StoreForbidden, StoreRefused or SchemaMismatch for whatever asyncpg raises inside."""
    try:
        yield
    except _MISSING as error:
        raise SchemaMismatch(
            f"The schema of webhookd is missing or too old ({error}). Run `webhookd migrate`."
        ) from error
    except asyncpg.UniqueViolationError as error:
        raise StoreTaken(_refusal(error)) from error
    except _REFUSED as error:
        raise StoreRefused(_refusal(error), passes=isinstance(error, asyncpg.InternalServerError)) from error
    except _CONFLICTS as error:
        raise StoreConflict(f"Another transaction was in the way: {_sentence(error)}.") from error
    except asyncpg.InsufficientPrivilegeError as error:
        if error.server_source_function == "check_enable_rls":
            raise StoreForbidden(f"Row security would hide events: {_sentence(error)}. {NO_ROW_SECURITY}") from error
        raise StoreForbidden(
            f"The database refuses us: {_sentence(error)}. Grant the daemon's role what it lacks: `webhookd check` "
            "names it."
        ) from error
    except (asyncpg.ReadOnlySQLTransactionError, asyncpg.TargetServerAttributeNotMatched) as error:
        raise StoreUnavailable(
            "The server is read-only, as a standby is: waiting for the primary. (If it is the primary, "
            "default_transaction_read_only is on for the server, the database or the role: switch that off.)"
        ) from error
    except UNAVAILABLE as error:
        kind = StoreDamaged if isinstance(error, asyncpg.PostgresSystemError) else StoreUnavailable
        raise kind(f"The database does not answer: {_sentence(error)}.") from error


@contextmanager
def decoded() -> Iterator[None]:
    """Around a statement: what is raised of its rows, while asyncpg makes values of Python of them, is StoreRefused."""
    try:
        yield
    except (*_REFUSED, *UNAVAILABLE, WebhookdError, MemoryError):
        raise
    except Exception as error:
        raise StoreRefused(f"a value cannot be read: {type(error).__name__}: {_sentence(error)}") from error


def _refusal(error: Exception) -> str:
    """What is wrong with a value: the constraints of the outbox are named by their sentence."""
    name = getattr(error, "constraint_name", None) or ""
    return name if " " in name else _sentence(error)


def _sentence(error: BaseException) -> str:
    if isinstance(error, asyncpg.InternalClientError):
        return (
            "the connection broke"  # as when the server ends it between two messages; its own words say nothing to us
        )
    return (str(error).splitlines() or [""])[0] or type(error).__name__
