"""Connections to Postgres, and the one place where its errors become ours."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import asyncpg

from webhookd.errors import ConfigError, SchemaMismatch, StoreRefused, StoreUnavailable

POOL_SIZE = 5  # with the listening connection six: more only queue up behind each other
COMMAND_TIMEOUT = 30.0
CONNECT_TIMEOUT = 10.0

# Where the database is, None for the PG* variables. A function is asked at each connect: passwords may be short-lived.
Dsn = str | None | Callable[[], str | None]

_MISSING = (
    asyncpg.UndefinedTableError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedColumnError,
)
_REFUSED = (asyncpg.DataError, asyncpg.exceptions.DataError, asyncpg.IntegrityConstraintViolationError)
_UNAVAILABLE = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


@contextmanager
def translated() -> Iterator[None]:
    """Raise StoreUnavailable, StoreRefused or SchemaMismatch for whatever asyncpg raises inside."""
    try:
        yield
    except _MISSING as error:
        raise SchemaMismatch(
            f"The schema of webhookd is missing or too old ({error}). Run `webhookd migrate`."
        ) from error
    except _REFUSED as error:
        raise StoreRefused(_sentence(error)) from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise StoreUnavailable(
            f"The database refuses us: {error}. Grant the daemon's role what sql/grants.sql lists."
        ) from error
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError) as error:
        raise StoreUnavailable(f"The database refuses us: {error}. Check user and password of the DSN.") from error
    except asyncpg.InvalidCatalogNameError as error:
        raise StoreUnavailable(f"{error}. Check the name of the database in the DSN.") from error
    except _UNAVAILABLE as error:
        raise StoreUnavailable(f"The database does not answer: {_sentence(error)}.") from error


@contextmanager
def _readable() -> Iterator[None]:
    """Around the use of a DSN: what asyncpg says of one that it cannot read may quote the password."""
    try:
        yield
    except ValueError:
        raise StoreUnavailable(
            "The DSN cannot be read: check its form, and that its password is percent-encoded."
        ) from None


def _sentence(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


async def _prepare(connection: "asyncpg.Connection[Any]") -> None:
    # As bytes and never parsed: what Postgres holds is what the receiver gets.
    for type_ in ("json", "jsonb"):
        await connection.set_type_codec(
            type_, schema="pg_catalog", encoder=_json_out[type_], decoder=_json_in[type_], format="binary"
        )


_json_out = {"json": bytes, "jsonb": lambda text: b"\x01" + text}
_json_in = {"json": bytes, "jsonb": lambda data: data[1:]}


def _now(dsn: Dsn) -> str | None:
    try:
        return dsn() if callable(dsn) else dsn
    except ConfigError as error:
        raise StoreUnavailable(str(error)) from None


async def connect(dsn: Dsn, **settings: str) -> "asyncpg.Connection[Any]":
    """A connection of its own, outside the pool; `settings` are session parameters."""
    with translated(), _readable():
        connection: asyncpg.Connection[Any] = await asyncpg.connect(
            _now(dsn),
            timeout=CONNECT_TIMEOUT,
            command_timeout=COMMAND_TIMEOUT,
            server_settings={"application_name": "webhookd", **settings},
        )
        await _prepare(connection)
        return connection


async def _keep(_: object) -> None:
    # Statements here leave nothing behind in a session, so there is nothing to reset: a round trip saved on each.
    return None


class Database:
    """A small pool of connections, used with `async with`; it connects when it is first asked."""

    def __init__(self, dsn: Dsn, *, size: int = POOL_SIZE) -> None:
        self._dsn = dsn
        self._size = size
        self._pool: asyncpg.Pool[Any] | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._pool is not None:
            try:
                async with asyncio.timeout(2.0):
                    await self._pool.close()
            except (TimeoutError, OSError, asyncpg.InterfaceError, asyncpg.PostgresError):
                self._pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator["asyncpg.pool.PoolConnectionProxy[Any]"]:
        """A connection from the pool; errors of what is done with it come out translated."""
        with translated():
            pool = self._pool or await self._open()
            with _readable():
                connection = await pool.acquire(timeout=CONNECT_TIMEOUT)
            try:
                yield connection
            finally:
                await pool.release(connection)

    async def _open(self) -> "asyncpg.Pool[Any]":
        async with self._opening:
            if self._pool is None:
                with _readable():
                    self._pool = await asyncpg.create_pool(
                        connect=self._connect,
                        min_size=0,
                        max_size=self._size,
                        timeout=CONNECT_TIMEOUT,
                        command_timeout=COMMAND_TIMEOUT,
                        max_inactive_connection_lifetime=60.0,
                        init=_prepare,
                        reset=_keep,
                        server_settings={"application_name": "webhookd"},
                    )
            return self._pool

    async def _connect(self, *_: object, **settings: Any) -> "asyncpg.Connection[Any]":
        connection: asyncpg.Connection[Any] = await asyncpg.connect(_now(self._dsn), **settings)
        return connection

    async def fetch(self, query: str, *arguments: object) -> Sequence["asyncpg.Record"]:
        """The rows of one statement, which is a transaction of its own."""
        async with self.connection() as connection:
            rows: list[asyncpg.Record] = await connection.fetch(query, *arguments)
            return rows

    async def fetch_row(self, query: str, *arguments: object) -> "asyncpg.Record":
        """The one row of a statement that always has one."""
        rows = await self.fetch(query, *arguments)
        return rows[0]
