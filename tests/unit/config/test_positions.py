"""The locator against tomllib: every path that it reports is found, on a line that holds its last key."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.config import positions
from webhookd.config.positions import lines, may_be_endless

_bare = st.text("abcXYZ019_-", min_size=1, max_size=4)
_any = st.text(st.characters(codec="utf-8", exclude_characters="\x7f", exclude_categories=["Cs", "Cc"]), max_size=5)
_spaces = st.sampled_from(["", " ", "\t"])


def _basic(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_key = st.one_of(
    _bare,
    _any.map(_basic),
    _any.map(_basic).map(lambda text: text.replace("a", "\\u0061")),
    _any.filter(lambda text: "'" not in text).map(lambda text: f"'{text}'"),
)
_scalar = st.one_of(
    st.sampled_from(["1", "-0.5", "true", "1979-05-27 07:32:00Z", "inf", '""', "''"]),
    st.sampled_from(["a = 1", "[t]", "{", "]", "#", '"', "\\", "'", "\n", '""', "k.k = 2\n"]).flatmap(
        lambda part: st.sampled_from(
            [
                _basic(part),
                '"""\n' + part.replace("\\", "\\\\").replace('"""', "") + ' """',
                f"'''{part}\n x = 1'''",
                '"""' + '\\"' + '"""',
                '"""x"""""',
                "'''y'''''",
                '"""z\\\n   a = 1"""',
            ]
        )
    ),
)


def _array(values: list[str]) -> str:
    return "[ # a = 1\n" + "".join(f"  {value}, # ]\n" for value in values) + "]"


@st.composite
def _inline(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    pairs = draw(st.lists(st.tuples(_key, _spaces, values), max_size=3))
    return "{" + ", ".join(f"{key}{space}={space}{value}" for key, space, value in pairs) + "}"


_value = st.recursive(_scalar, lambda inner: st.one_of(_inline(inner), st.lists(inner, max_size=3).map(_array)))


@st.composite
def _documents(draw: st.DrawFn) -> str:
    statements = []
    for _ in range(draw(st.integers(0, 6))):
        space = draw(_spaces)
        keys = f"{space}.{space}".join(draw(st.lists(_key, min_size=1, max_size=3)))
        kind = draw(st.sampled_from(["[%s]", "[[%s]]", "%s", "%s", "%s", "# %s = [", "\n"]))
        if kind == "%s":
            statements.append(f"{space}{keys}{space}={space}{draw(_value)}{space}")
        else:
            statements.append(space + kind.replace("%s", f"{space}{keys}{space}") + space)
        statements[-1] += draw(st.sampled_from(["", " # b = 2", "#]"]))
    return draw(st.sampled_from(["\n", "\r\n", "\n\n"])).join(statements)


def _paths(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in table.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from _paths(value, (*above, key))


def _holds(line: str, key: str) -> bool:
    spellings = (key, _basic(key), _basic(key).replace("a", "\\u0061"))
    return any(spelling in line for spelling in spellings)


@given(st.one_of(_documents(), st.text("ab\"'[]{}=,.#\\\n \r", max_size=40)))
def test_every_path_of_tomllib_is_located(text: str) -> None:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    found = lines(text)
    rows = text.split("\n")
    for path in _paths(document):
        assert _holds(rows[found[path] - 1], path[-1])


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("a = 1\n\n[log]\nlevel = 2", ("log", "level"), 4),
        ('[event_types."order.status"]\nexample = 1', ("event_types", "order.status"), 1),
        ("[endpoint.a]\nretry = { first = 1,\tfactor = 2 }", ("endpoint", "a", "retry", "factor"), 2),
        ("[endpoint.a]\nretry.first = 1\nretry.factor = 2", ("endpoint", "a", "retry", "factor"), 3),
        ('a = [\n  "x", # ]\n  { c = 1 },\n]\nb = 2', ("b",), 5),
        ('a = """\nb = 1\n"""\nb = 2', ("b",), 4),
        ("[a.b]\n[a]\nc = 1", ("a",), 1),
        ("[[a]]\nb = 1\n[[a]]\nb = 2\n[a.c]\nd = 3", ("a", "c", "d"), 6),
        ("a = [{b = {c = 1}}, {b = 2}]\nd = 1", ("d",), 2),
    ],
)
def test_a_line(text: str, path: tuple[str, ...], line: int) -> None:
    assert lines(text)[path] == line


def test_a_key_of_many_parts_is_noticed_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "_PIECE", 50)
    for before in range(120):
        text = "#" * before + "\n" + "k = 1\n" * 10
        assert may_be_endless(text + "a." * 32 + "b = 1")
        assert not may_be_endless(text + "a." * 31 + "b = 1\n" + "a." * 31)
