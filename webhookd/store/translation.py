"""The one place where errors of Postgres and of its driver become ours."""

from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Final

import asyncpg

from webhookd.errors import (
    Moved,
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


KINDS: Final[Mapping[str, type[BaseException]]] = MappingProxyType(  # the first that fits
    {
        "conflict": StoreConflict,
        "forbidden": StoreForbidden,
        "damaged": StoreDamaged,
        "unavailable": StoreUnavailable,
        "refused": StoreRefused,
        "schema": SchemaMismatch,
        "moved": Moved,
        "other": BaseException,
    }
)

_TOLD = (*_REFUSED, *UNAVAILABLE, WebhookdError, MemoryError)


class translated:  # as it is used; a generator would cost each statement more
    """Raise StoreUnavailable, StoreForbidden, StoreRefused or SchemaMismatch for whatever asyncpg raises inside."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and (found := ours(error)) is not None:
            raise found from error


class decoded:  # the same
    """Around a statement: what is raised of its rows, while asyncpg makes values of Python of them, is StoreRefused."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(
            error, (*_REFUSED, *UNAVAILABLE, WebhookdError, MemoryError)
        ):
            raise StoreRefused(f"a value cannot be read: {type(error).__name__}: {_sentence(error)}") from error


def ours(error: BaseException) -> WebhookdError | None:
    """What it is for us; None for what is not of Postgres or its driver."""
    if isinstance(error, _MISSING):
        return SchemaMismatch(f"The schema of webhookd is missing or too old ({error}). Run `webhookd migrate`.")
    if isinstance(error, asyncpg.UniqueViolationError):
        return StoreTaken(_refusal(error))
    if isinstance(error, _REFUSED):
        return StoreRefused(_refusal(error), passes=isinstance(error, asyncpg.InternalServerError))
    if isinstance(error, _CONFLICTS):
        return StoreConflict(f"Another transaction was in the way: {_sentence(error)}.")
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        if error.server_source_function == "check_enable_rls":
            return StoreForbidden(f"Row security would hide events: {_sentence(error)}. {NO_ROW_SECURITY}")
        return StoreForbidden(
            f"The database refuses us: {_sentence(error)}. Grant the daemon's role what it lacks: `webhookd check` "
            "names it."
        )
    if isinstance(error, (asyncpg.ReadOnlySQLTransactionError, asyncpg.TargetServerAttributeNotMatched)):
        return StoreUnavailable(
            "The server is read-only, as a standby is: waiting for the primary. (If it is the primary, "
            "default_transaction_read_only is on for the server, the database or the role: switch that off.)"
        )
    if isinstance(error, UNAVAILABLE):
        kind = StoreDamaged if isinstance(error, asyncpg.PostgresSystemError) else StoreUnavailable
        return kind(f"The database does not answer: {_sentence(error)}.")
    return None


def kind_of(error: BaseException) -> str:
    """What an error is called where errors are counted: one of KINDS."""
    return next(name for name, kind in KINDS.items() if isinstance(error, kind))


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
