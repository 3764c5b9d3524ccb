"""Tables and JSON for people, in which nothing that others wrote can act on a terminal.

Event types, URLs, names and answers come from applications and receivers: a character that is not plain text is shown
as its escape, and no text is ever read as markup.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import orjson
import typer
from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

MOST = 200  # characters of a cell
WIDE = 10_000  # where no terminal folds lines


def inert(text: str, most: int = MOST) -> str:
    """The text on one line, cut after so many characters, with escapes for all that a terminal would act on."""
    shown = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def document(value: Any, *, indent: bool = True) -> str:
    """The value as JSON, the same for every parser, with escapes where inert() has them."""
    text = orjson.dumps(value, option=orjson.OPT_UTC_Z | (orjson.OPT_INDENT_2 if indent else 0)).decode()
    return "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in text)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be").hex()
    return "".join(f"\\u{units[n : n + 4]}" for n in range(0, len(units), 4))


def cell(value: object, style: str = "") -> Text:
    """A value as a table shows it: nothing for None, a moment in UTC to the second."""
    if isinstance(value, datetime):
        return Text(f"{value:%Y-%m-%d %H:%M:%S}", style)
    return Text("" if value is None else inert(str(value)), style)


def counted(number: int, one: str, many: str = "") -> str:
    """The number with its noun."""
    return f"{number} {one}" if number == 1 else f"{number} {many or one + 's'}"


def span(seconds: float) -> str:
    """A duration, as precise as people want it."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table; a head that begins with ">" is of a column of numbers."""
    columns = [
        Column(Text(head.removeprefix(">")), justify="right" if head.startswith(">") else "left", overflow="fold")
        for head in heads
    ]
    made = Table(*columns, box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for row in rows:
        made.add_row(*(each if isinstance(each, Text) else cell(each) for each in row))
    return made


def show(*parts: RenderableType) -> None:
    """Print, with colours and folded lines on a terminal only."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)
    for part in parts:
        console.print(part)


def show_json(value: Any) -> None:
    """Print one document."""
    typer.echo(document(value))
