"""Where lines of text for people break: never in a word, nor in what is quoted, nor in the name of a file."""

import io
import itertools
import random
import re

import pytest
from rich.cells import cell_len
from rich.text import Text

from webhookd.cli.tables import folded
from webhookd.cli.width import columns, hanging, wrapped

WORDS = [
    "a",
    "endpoint",
    "/etc/webhookd/webhookd.toml:3:",
    "日本語の名前",
    "grün",
    '"10.20.0.0/16"',
    "`webhookd run`",
    "x" * 90,
]


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_no_word_is_broken_nor_lost_and_no_line_is_too_wide(width: int) -> None:
    chance = random.Random(width)
    for _ in range(200):
        text = " ".join(chance.choice(WORDS) for _ in range(chance.randrange(30)))
        lines = wrapped(text, width).split("\n")
        assert " ".join(line.strip() for line in lines) == text
        for line in lines:
            assert cell_len(line) <= width or line.strip() in WORDS, line
        assert [line.plain for line in folded(Text(text), width)] == lines
        for line, after in itertools.pairwise(lines):  # as much to a line as fits
            first = re.match(r"(`[^`]*`|\S)+", after.strip())
            assert first
            assert cell_len(f"{line} {first[0]}") > width


def test_what_is_quoted_stays_together_where_it_fits() -> None:
    text = 'let the group read it: "chgrp webhookd FILE; chmod g+rX FILE", or `webhookd systemd install`'
    assert wrapped(text, 50).split("\n") == [
        "let the group read it:",
        '  "chgrp webhookd FILE; chmod g+rX FILE", or',
        "  `webhookd systemd install`",
    ]
    assert wrapped(f'"{"ab " * 30}"', 40).count("\n") == 2


def test_a_file_in_a_folder_with_blanks_stays_together() -> None:
    text = "webhookd: /srv/my web hooks/webhookd.toml:3: [log] level: wants one; see /srv/my web hooks/b.toml"
    assert wrapped(text, 42).split("\n") == [
        "webhookd:",
        "  /srv/my web hooks/webhookd.toml:3: [log]",
        "  level: wants one; see",
        "  /srv/my web hooks/b.toml",
    ]


def test_the_second_column_goes_on_below_itself() -> None:
    assert wrapped("problem      one endpoint fails and", 34).split("\n") == [
        "problem      one endpoint fails",
        " " * 13 + "and",
    ]
    assert hanging("a sentence that says something  and more", 80) == 2
    assert hanging("  orders: delivered", 80) == 4
    assert hanging("problem      x", 24) == 4


def test_a_style_goes_along() -> None:
    (first, second) = folded(Text("problem      one endpoint fails", "red"), 30)
    assert first.style == "red" or first.spans[0].style == "red"
    assert second.spans[-1].style == "red"


def test_what_says_nothing_is_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert columns(io.StringIO()) is None
    monkeypatch.setenv("COLUMNS", "72")
    assert columns(io.StringIO()) == 72
    monkeypatch.setenv("COLUMNS", "0")
    assert columns(io.StringIO()) is None
