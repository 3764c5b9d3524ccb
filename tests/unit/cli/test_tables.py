"""Nothing that others wrote acts on a terminal, whatever command shows it, and JSON stays what it was."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import webhookd.cli
from webhookd.cli.tables import document, inert, inert_json

ACTING = [
    *map(chr, (*range(0x20), *range(0x7F, 0xA0))),  # C0 and C1; U+009B begins what ESC [ does
    *map(chr, (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))),  # of bidirectional text
    *map(chr, (0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0x180E)),  # without a width
    *map(chr, (0x034F, 0x115F, 0x3164, 0xFFA0, 0xFE0F, 0xE0100)),  # the same, though no format characters
    *map(chr, (0x2028, 0x2029, 0xE0041, 0xE007F)),  # lines; tags
    *map(chr, (0x0378, 0xE000, 0xFFFF, 0xD800, 0xDCFF, 0x10FFFF)),  # unassigned, private, no characters
]
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.sampled_from(ACTING[:-6]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@pytest.mark.parametrize("character", ACTING, ids=lambda character: f"U+{ord(character):04X}")
def test_a_character_that_acts_or_hides_is_shown_as_its_escape(character: str) -> None:
    for text in (inert(f"a{character}b"), document(f"a{character}b"), inert_json(f'"a{character}b"')):
        assert character not in text
        assert text.isascii() or "\N{REPLACEMENT CHARACTER}" in text


def test_text_that_people_read_stays_as_it_is() -> None:
    for text in ("Größe, 注文, заказ, طلب, naïve 😀", "C:\\x9b", "[bold]:smile:"):
        assert inert(text) == text
        assert document(text) == orjson.dumps(text).decode()


@given(values, st.booleans())
def test_a_document_is_plain_valid_and_equal_after_parsing(value: Any, indent: bool) -> None:
    text = document(value, indent=indent)
    assert all(line.isprintable() for line in text.split("\n"))
    assert json.loads(text) == orjson.loads(text) == value
    assert indent or "\n" not in text


def test_what_is_no_text_becomes_valid_json() -> None:
    """Bytes of a header, an argument or a path that are not UTF-8, and halves of a pair, at any depth."""
    value = {"\udcff": ["\udcff", ("\ud83d\ude00", "\ud83d", 1, None)], "plain": "\x9b"}
    replaced = "\N{REPLACEMENT CHARACTER}"
    expected = {replaced: [replaced, ["\N{GRINNING FACE}", replaced, 1, None]], "plain": "\x9b"}
    assert orjson.loads(document(value)) == json.loads(document(value)) == expected


def test_the_log_for_people_has_no_such_text_either(tmp_path: Path) -> None:
    script = (
        "import structlog\nfrom webhookd.cli import logging\nfrom webhookd.errors import WebhookdError\n"
        "logging.configure('info', 'console')\nlog = structlog.get_logger('webhookd.test')\n"
        "log.info('told', endpoint='a\\x9b2J\\u202eb', labels=['\\x9b'])\n"
        "try:\n    raise WebhookdError('\\x9b\\u202e')\nexcept WebhookdError:\n    log.exception('died')\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=True, env=os.environ)
    lines = found.stderr.decode().split("\n")
    assert all(line.isprintable() for line in lines)
    assert r"endpoint=a\x9b2J\u202eb" in lines[0]
    assert lines[2] == "Traceback (most recent call last):"


def test_every_command_prints_by_these_functions() -> None:
    """print, typer.echo and their kind know nothing of terminals, and orjson lets all through but C0."""
    folder = Path(webhookd.cli.__file__).parent
    for file in set(folder.rglob("*.py")) - {folder / "tables.py", folder / "logging.py"}:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called.rpartition(".")[2] not in ("echo", "secho", "print"), f"{file}:{node.lineno}: {called}"
                assert not called.endswith(("stdout.write", "stderr.write", "stdout.buffer.write")), file
