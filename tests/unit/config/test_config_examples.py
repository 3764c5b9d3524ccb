"""What is shipped in config/ loads, and sends what it says."""

import json
import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from webhookd.config.config import Config
from webhookd.config.loader import load
from webhookd.config.named import NAMED
from webhookd.config.schema import SECTIONS
from webhookd.model import Event

CONFIG = Path(__file__).parents[3] / "config"
WHEN = datetime(2021, 1, 26, 17, 23, 9, tzinfo=UTC)


@pytest.fixture(scope="module")
def examples() -> Config:
    return load(CONFIG / "webhookd.toml", {"WEBHOOKD_ENDPOINTS__DIRECTORY": "examples"})


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("builder-trips", {"event": {"type": "a.b", "id": "msg_1", "resource": {"x": 1}}}),
        ("application-1/bank-data", {"content": {"x": 1}, "timestamp": 1611681789, "type": "a.b"}),
        (
            "workspace-1/order-status",
            {"type": "a.b", "timestamp": "2021-01-26T17:23:09Z", "data": {"x": 1}},
        ),
        (
            "console",
            {
                "event_time": "2021-01-26T17:23:09Z",
                "event_type": "a.b",
                "current_context": {"user": 7},
                "data": {"x": 1},
            },
        ),
        ("chat", {"x": 1}),
        ("chat-signed", {"x": 1}),
        ("chat-poll", {"x": 1}),
    ],
)
def test_an_example_sends_the_body_of_its_system(examples: Config, endpoint: str, body: Any) -> None:
    (found,) = [each for each in examples.endpoints if each.label == endpoint]
    event = Event(1, "msg_1", WHEN, "a.b", "", None, b'{"context": {"user": 7}}', None, 8)
    assert json.loads(found.format(event, b'{"x": 1}', "webhookd").content) == body


def test_the_examples_describe_their_event_types(examples: Config) -> None:
    assert examples.event_types["TEST_EVENT"].example == {"item_id": 1234567, "status": 0}
    assert examples.event_types["order.status"].example["at"] == "2026-01-31T12:00:00+00:00"


def _keys(file: Path, header: str) -> dict[str, Any]:
    """What the file says in a table, comments included."""
    table = re.split(r"\n(?:# )?\[", file.read_text().partition(f"\n[{header}]")[2])[0]
    lines = [re.sub(r"^# (?=\w+ = )", "", line) for line in table.splitlines()[1:]]
    return tomllib.loads("\n".join(line for line in lines if re.match(r"\w+ = ", line)))


@pytest.mark.parametrize("name", SECTIONS)
def test_the_main_file_shows_every_key_with_its_default(name: str) -> None:
    model = SECTIONS[name]
    shown = _keys(CONFIG / "webhookd.toml", name)
    assert shown.keys() == model.model_fields.keys()
    if name not in ("database", "daemon"):  # whose values are examples: a place of one's own, and a choice by itself
        assert model.model_validate(shown) == model()


def test_the_example_shows_every_key_of_an_endpoint() -> None:
    assert (
        _keys(CONFIG / "endpoints.d" / "example.toml", "endpoint.example").keys()
        == NAMED["endpoint"].model_fields.keys()
    )
