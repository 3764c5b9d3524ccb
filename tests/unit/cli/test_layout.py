"""Tables on terminals of any width: no cell is broken, what has no room is named, numbers stand under each other."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from webhookd.cli.tables import GAP, INDENT, WIDE, Fitted, Table, cell, lines

HEADS = ("event_id", "type", ">size", "state")
UUID = "0190a1b2-c3d4-7e5f-8a9b-0123456789ab"
ROWS = [(UUID, "order.created", 7, "delivered"), ("e", "user.deleted.by.an.operator", 1_048_576, "retrying")]
LEAST = ("size", "type")

words = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=60)


def printed(part: Table | Fitted, width: int, height: int = 25) -> list[str]:
    """The lines a terminal of that size gets."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(part, soft_wrap=isinstance(part, Table))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_where_there_is_room_each_row_is_a_line_with_numbers_under_each_other() -> None:
    assert printed(Table(HEADS, ROWS, LEAST), 100) == [
        f"event_id{' ' * 30}type                            size  state",
        f"{UUID}  order.created                      7  delivered",
        f"e{' ' * 37}user.deleted.by.an.operator  1048576  retrying",
    ]
    assert list(lines(HEADS, ROWS)) == printed(Table(HEADS, ROWS, LEAST), 100)


def test_what_is_least_important_is_left_out_first_and_named() -> None:
    hint = "no room for size: a wider terminal or --json has it"
    assert printed(Table(HEADS, ROWS, LEAST), 80)[-1] == hint
    assert printed(Table(HEADS, ROWS, LEAST), 60) == [
        f"event_id{' ' * 30}   size  state",
        f"{UUID}        7  delivered",
        f"e{' ' * 37}1048576  retrying",
        "no room for type: a wider terminal or --json has it",
    ]
    assert printed(Table(HEADS, ROWS, LEAST), 50)[-2:] == [
        "no room for type, size: a wider terminal or --json",
        "  has them",
    ]


def test_where_the_rest_is_too_wide_a_row_takes_several_lines_and_has_all() -> None:
    assert printed(Table(HEADS, ROWS, LEAST), 40) == [
        "event_id",
        "    type                            size",
        "    state",
        UUID,
        "    order.created                      7",
        "    delivered",
        "e",
        "    user.deleted.by.an.operator  1048576",
        "    retrying",
    ]


def test_a_few_cells_that_are_too_wide_have_lines_of_their_own_and_the_others_stay_a_table() -> None:
    rows = [("short", "active", 1), ("a-team-with-a-long-name/orders", "paused", 22), ("日本", "failing", 333)]
    assert printed(Table(("endpoint", "state", ">owed"), rows), 30) == [
        "endpoint  state    owed",
        "short     active      1",
        "a-team-with-a-long-name/orders",
        "          paused     22",
        "日本      failing   333",
    ]
    second = [(number, name, state) for name, state, number in rows]
    assert printed(Table((">owed", "endpoint", "state", "more"), [(*row, "x") for row in second], ("more",)), 30) == [
        "owed  endpoint  state    more",
        "   1  short     active   x",
        "  22            paused   x",
        "    a-team-with-a-long-name/orders",
        " 333  日本      failing  x",
    ]
    two = [rows[1], (*rows[1][:2], 3), rows[0]]  # most are
    assert len(printed(Table(("endpoint", "state", ">owed"), two), 30)) == 2 + 3 * 2


@given(st.lists(st.tuples(words, words, words, words), max_size=8), st.integers(1, 200))
def test_no_cell_is_ever_broken(rows: list[tuple[str, ...]], width: int) -> None:
    table = Table(("a", "b", ">c", "d"), rows, ("d", "b"))
    found = table.layout(width)
    for shown, row in zip(found.rows, rows, strict=True):
        for name, text in zip("abcd", row, strict=True):
            assert name in found.left_out or sum(cell(text).plain in line.plain for line in shown) >= 1
    for line in (*found.heads, *(line for row in found.rows for line in row)):
        alone = GAP not in line.plain.removeprefix(INDENT).strip()
        assert line.cell_len <= width or alone, "only a cell that is wider than the terminal stands out"


def test_a_terminal_that_is_too_narrow_for_an_id_gets_it_in_one_piece() -> None:
    assert printed(Table(HEADS, ROWS, LEAST), 20)[4] == UUID


def test_characters_that_take_two_cells_are_counted_as_two() -> None:
    assert printed(Table(("name", ">n"), [("日本", 1), ("abcd", 22)]), 80) == ["name   n", "日本   1", "abcd  22"]


@pytest.mark.parametrize(
    ("height", "shown", "more"), [(30, 20, 0), (22, 20, 0), (21, 18, 2), (6, 3, 17), (3, 0, 20), (1, 0, 20)]
)
def test_on_a_terminal_that_is_too_low_rows_are_left_out_and_counted(height: int, shown: int, more: int) -> None:
    table = Table(("name",), [(f"row{n}",) for n in range(20)])
    text = printed(Fitted([Text("above")], table, "endpoint"), 80, height)
    assert [line for line in text if line.startswith("row")] == [f"row{n}" for n in range(shown)]
    left = [line for line in text if line.startswith("no room")]
    assert left == ([f"no room for {more} more endpoints; without --watch all are shown"] if more else [])
    assert len(text) <= max(height, 3)


def test_lines_above_that_are_folded_take_of_the_room() -> None:
    table = Table(("name",), [(f"row{n}",) for n in range(20)])
    text = printed(Fitted([Text("word " * 30)], table), 60, 10)
    assert len(text) == 10
    assert text[-1].startswith("no room for 15 more rows")


def test_elsewhere_nothing_is_left_out() -> None:
    found = Table(("id", "text"), [("x", "y" * 200)], ("text",)).layout(WIDE)
    assert (found.left_out, found.rows[0][0].plain) == ([], f"x   {'y' * 200}")
