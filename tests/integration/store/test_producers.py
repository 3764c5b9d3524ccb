"""What applications write events with, each through its own library and with no more rights than grants.sql gives.

The code of docs/producing.md is run as it stands there; what else a library can do is tried on the models of that page.
"""

import ast
import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any, NamedTuple, TypeAlias

import asyncpg
import django
import psycopg
import pytest
import uvloop
from django.conf import settings
from django.contrib.postgres.functions import RandomUUID
from django.db import connection as django_connection
from django.db import connections, models, transaction
from django.test.utils import isolate_apps
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import JSON, BigInteger, FetchedValue, NullPool, create_engine, delete, insert, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tests.integration.engine.test_delivery import AWKWARD
from tests.integration.test_readme import PRODUCING, block_with, blocks

Names: TypeAlias = dict[str, Any]
INSERT = "INSERT INTO webhookd.outbox (type, payload) VALUES ({}) RETURNING event_id"
OBJECTS = [  # as json.dumps writes what json.loads has read; jsonb would order the keys of the first anew
    '{"z": 1, "a": [1.5, null], "big": 123456789012345678901234567890}',
    '{"text": "\\u00e9 \\ud83d"}',
    "[]",
    '""',
]


@contextmanager
def asyncpg_application(dsn: str) -> Iterator[Names]:
    """What a block with asyncpg expects to be there."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        connection = runner.run(asyncpg.connect(dsn))
        try:
            yield {"runner": runner, "connection": connection}
        finally:
            runner.run(connection.close())


@contextmanager
def psycopg_application(dsn: str) -> Iterator[Names]:
    """What a block with psycopg expects to be there."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield {"connection": connection}


@contextmanager
def sqlalchemy_application(dsn: str) -> Iterator[Names]:
    """What a block with SQLAlchemy expects to be there."""
    engine = create_engine(dsn.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
    with Session(engine) as session:
        yield {
            "session": session, "text": text, "Any": Any, "JSON": JSON, "BigInteger": BigInteger, "Mapped": Mapped,
            "mapped_column": mapped_column, "DeclarativeBase": DeclarativeBase, "FetchedValue": FetchedValue,
        }  # fmt: skip


@contextmanager
def django_application(dsn: str) -> Iterator[Names]:
    """What a block with Django expects to be there: a project with this package as its app, and a model of orders."""
    if not settings.configured:
        settings.configure(INSTALLED_APPS=["tests.integration"], LOGGING_CONFIG=None)
        django.setup()
    there = conninfo_to_dict(dsn)
    database = {"ENGINE": "django.db.backends.postgresql", "NAME": there["dbname"], "USER": there["user"]}
    database |= {"HOST": there["host"], "PORT": there["port"]}
    connections.settings |= connections.configure_settings({"default": database})
    connections["default"] = connections.create_connection("default")
    with closing(connections["default"]), isolate_apps("tests.integration"):

        class Order(models.Model):  # type: ignore[misc]  # Django has no types
            id = models.BigIntegerField(primary_key=True)
            status = models.TextField()

            class Meta:
                managed = False
                db_table = "orders"

        yield {
            "connection": django_connection, "models": models, "transaction": transaction, "Order": Order,
            "RandomUUID": RandomUUID,
        }  # fmt: skip


class Library(NamedTuple):
    """A library, and the block of the page that uses it."""

    application: Callable[[str], AbstractContextManager[Names]]
    block: str


LIBRARIES = {
    "asyncpg": Library(asyncpg_application, block_with(PRODUCING, "python", "await connection")),
    "psycopg": Library(psycopg_application, block_with(PRODUCING, "python", "    connection.execute(")),
    "sqlalchemy": Library(sqlalchemy_application, block_with(PRODUCING, "python", "DeclarativeBase")),
    "django": Library(django_application, block_with(PRODUCING, "python", "def emit(")),
    "django-model": Library(django_application, block_with(PRODUCING, "python", "models.Model")),
}


@contextmanager
def application(library: Library, dsn: str) -> Iterator[Names]:
    """An application that has what the block needs."""
    with library.application(dsn) as names:
        yield names | {"__name__": __name__, "json": json, "order": 42}


def run(library: Library, names: Names) -> None:
    """Run the block; what it defines is in `names` then."""
    code = compile(library.block, PRODUCING.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    pending = eval(code, names)  # noqa: S307 - the code of our own page
    if pending is not None:
        names["runner"].run(pending)


def fetch(dsn: str, query: str) -> list[tuple[Any, ...]]:
    """What the owner sees."""
    with psycopg.connect(dsn) as owner:
        return owner.execute(query.encode()).fetchall()


EVENTS = "SELECT type, payload::text FROM webhookd.outbox"
each_library = pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)


def test_every_block_of_the_page_has_its_library() -> None:
    assert sorted(library.block for library in LIBRARIES.values()) == sorted(blocks(PRODUCING, "python"))


@each_library
def test_the_code_of_the_page_writes_the_event_with_the_change(library: Library, producer: str, dsn: str) -> None:
    with application(library, producer) as names:
        run(library, names)
    assert fetch(dsn, EVENTS) == [("order.paid", '{"order": 42}')]
    assert fetch(dsn, "SELECT status FROM orders WHERE id = 42") == [("paid",)]


@each_library
def test_when_the_transaction_of_the_page_fails_there_is_no_event(library: Library, producer: str, dsn: str) -> None:
    with psycopg.connect(dsn) as owner:
        owner.execute(
            """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not at commit'; END $$;
               CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON orders INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION refuse()"""
        )
    with application(library, producer) as names, pytest.raises(Exception, match="not at commit"):
        run(library, names)
    assert fetch(dsn, "SELECT last_value, is_called FROM webhookd.outbox_id_seq") == [(1, True)], "it was inserted"
    assert fetch(dsn, EVENTS) == []
    assert fetch(dsn, "SELECT status FROM orders WHERE id = 42") == [("new",)]


# Every way of a library to insert: from the texts of payloads to the ids of their events


def asyncpg_insert(names: Names, texts: Sequence[str]) -> list[str]:
    statement = INSERT.format("'way', $1")
    return [names["runner"].run(names["connection"].fetchval(statement, each)) for each in texts]


def asyncpg_emit(names: Names, texts: Sequence[str]) -> list[str]:
    statement = "SELECT webhookd.emit('way', $1)"
    return [names["runner"].run(names["connection"].fetchval(statement, each)) for each in texts]


def psycopg_insert(names: Names, texts: Sequence[str]) -> list[str]:
    return [names["connection"].execute(INSERT.format("'way', %s"), [each]).fetchone()[0] for each in texts]


def psycopg_executemany(names: Names, texts: Sequence[str]) -> list[str]:
    cursor = names["connection"].cursor()
    cursor.executemany(INSERT.format("'way', %s"), [[each] for each in texts], returning=True)
    return [each.fetchone()[0] for each in cursor.results()]


def sqlalchemy_add(names: Names, texts: Sequence[str]) -> list[str]:
    session, ids = names["session"], []
    for each in texts:
        event = names["OutboxEvent"](type="way", payload=json.loads(each))
        session.add(event)
        session.flush()
        ids.append(event.event_id)
        session.commit()
    return ids


def sqlalchemy_add_all(names: Names, texts: Sequence[str]) -> list[str]:
    session = names["session"]
    events = [names["OutboxEvent"](type="way", payload=json.loads(each)) for each in texts]
    session.add_all(events)
    session.flush()
    ids = [event.event_id for event in events]
    session.commit()
    return ids


def sqlalchemy_core(names: Names, texts: Sequence[str]) -> list[str]:
    table = names["OutboxEvent"].__table__
    statement = insert(table).returning(table.c.event_id, sort_by_parameter_order=True)
    rows = [{"type": "way", "payload": json.loads(each)} for each in texts]
    with names["session"].get_bind().begin() as connection:
        return list(connection.execute(statement, rows).scalars())


def django_emit(names: Names, texts: Sequence[str]) -> list[str]:
    return [names["emit"]("way", json.loads(each)) for each in texts]


def django_cursor(names: Names, texts: Sequence[str]) -> list[str]:
    ids = []
    with names["connection"].cursor() as cursor:
        for each in texts:
            cursor.execute("SELECT webhookd.emit(%s, %s)", ["way", each])
            ids += cursor.fetchone()
    return ids


def django_create(names: Names, texts: Sequence[str]) -> list[str]:
    return [names["OutboxEvent"].objects.create(type="way", payload=each).event_id for each in texts]


def django_bulk_create(names: Names, texts: Sequence[str]) -> list[str]:
    event = names["OutboxEvent"]
    return [made.event_id for made in event.objects.bulk_create(event(type="way", payload=each) for each in texts)]


def django_bulk_create_with_ids(names: Names, texts: Sequence[str]) -> list[str]:
    event = names["OutboxEvent"]
    rows = [event(type="way", payload=each, event_id=f"mine-{n}") for n, each in enumerate(texts)]
    return [made.event_id for made in event.objects.bulk_create(rows)]


class Way(NamedTuple):
    """A way to insert, and the payloads that it has to leave as they are."""

    library: str
    insert: Callable[[Names, Sequence[str]], list[str]]
    texts: Sequence[str]


TEXTS = AWKWARD + OBJECTS
WAYS = [
    Way("asyncpg", asyncpg_insert, TEXTS),
    Way("asyncpg", asyncpg_emit, TEXTS),
    Way("psycopg", psycopg_insert, TEXTS),
    Way("psycopg", psycopg_executemany, TEXTS),
    Way("sqlalchemy", sqlalchemy_add, OBJECTS),
    Way("sqlalchemy", sqlalchemy_add_all, OBJECTS * 500),  # several statements
    Way("sqlalchemy", sqlalchemy_core, OBJECTS),
    Way("django", django_emit, OBJECTS),
    Way("django", django_cursor, TEXTS),
    Way("django-model", django_create, TEXTS),
    Way("django-model", django_bulk_create, TEXTS * 20),
    Way("django-model", django_bulk_create_with_ids, TEXTS),
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.insert.__name__)
def test_payloads_stay_what_they_are_and_ids_come_back(way: Way, producer: str, dsn: str) -> None:
    library = LIBRARIES[way.library]
    with application(library, producer) as names:
        run(library, names)
        ids = way.insert(names, way.texts)
    assert len(set(ids)) == len(way.texts)
    stored = fetch(dsn, "SELECT event_id, payload::text FROM webhookd.outbox WHERE type = 'way' ORDER BY id")
    assert stored == list(zip(ids, way.texts, strict=True))


# What it may not


def by_asyncpg(statement: str) -> Callable[[Names], object]:
    return lambda names: names["runner"].run(names["connection"].fetch(statement))


def by_psycopg(statement: str) -> Callable[[Names], object]:
    return lambda names: names["connection"].execute(statement)


STATEMENTS = [
    "SELECT payload FROM webhookd.outbox",
    "SELECT type FROM webhookd.outbox",
    "UPDATE webhookd.outbox SET type = 'x'",
    "DELETE FROM webhookd.outbox",
]
FORBIDDEN: dict[str, list[Callable[[Names], object]]] = {
    "asyncpg": [by_asyncpg(statement) for statement in STATEMENTS],
    "psycopg": [by_psycopg(statement) for statement in STATEMENTS],
    "sqlalchemy": [
        lambda names: names["session"].scalars(select(names["OutboxEvent"])).all(),
        lambda names: names["session"].execute(update(names["OutboxEvent"]).values(type="x")),
        lambda names: names["session"].execute(delete(names["OutboxEvent"])),
    ],
    "django-model": [
        lambda names: names["OutboxEvent"].objects.first(),
        lambda names: names["OutboxEvent"].objects.update(type="x"),
        lambda names: names["OutboxEvent"].objects.all().delete(),
    ],
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_who_writes_can_neither_read_payloads_nor_change_what_happened(name: str, producer: str, dsn: str) -> None:
    with application(LIBRARIES[name], producer) as names:
        run(LIBRARIES[name], names)
        for forbidden in FORBIDDEN[name]:
            with pytest.raises(Exception, match="permission denied for table outbox"):
                forbidden(names)
            if name == "sqlalchemy":
                names["session"].rollback()
    assert fetch(dsn, EVENTS) == [("order.paid", '{"order": 42}')]


def test_sqlalchemy_reads_the_whole_row_anew_after_the_commit_which_a_producer_may_not(producer: str) -> None:
    library = LIBRARIES["sqlalchemy"]
    with application(library, producer) as names:
        run(library, names)
        session = names["session"]
        event = names["OutboxEvent"](type="order.paid", payload={})
        session.add(event)
        session.flush()
        assert event.event_id
        session.commit()
        with pytest.raises(Exception, match="permission denied for table outbox"):
            _ = event.event_id
        session.rollback()
        with Session(session.get_bind(), expire_on_commit=False) as keeping:
            event = names["OutboxEvent"](type="order.paid", payload={})
            keeping.add(event)
            keeping.commit()
        assert event.event_id
