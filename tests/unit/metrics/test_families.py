"""Every name, kind and help; and what ten thousand endpoints take."""

import re
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from webhookd.metrics.exposition import Family, lines
from webhookd.metrics.families import ALIKE, Reading, families, of_endpoints
from webhookd.policy.endpoint_state import EndpointState
from webhookd.store.overview import Each, Overview
from webhookd.tally import Tally

ROOT = Path(__file__).parents[3]
HEALTH: dict[str, float | None] = dict.fromkeys(
    (
        "unread_events",
        "unread_seconds",
        "scheduled_events",
        "open_batches",
        "late_seconds",
        "cursor_seconds",
        "rows_in_default",
        "days_ahead",
        "live_daemons",
        "configurations",
        "bytes",
        "unreadable_events",
        "exhausted_last_hour",
        "missed_last_hour",
        "snapshot_seconds",
    ),
    0,
)
AGES = {"view": 1.0, "rest": 5.0}
OF_THE_DATABASE = [
    "backlog",
    "batches_open",
    "configurations",
    "cursor_age_seconds",
    "daemons",
    "default_partition_rows",
    "endpoint_cursor_age_seconds",
    "endpoint_oldest_owed_age_seconds",
    "endpoint_owed",
    "endpoint_state",
    "endpoints",
    "exhausted_last_hour",
    "held_snapshot_age_seconds",
    "missed_last_hour",
    "oldest_owed_age_seconds",
    "outbox_bytes",
    "partition_days_ahead",
    "scheduled_events",
    "tables_bytes",
    "unread_age_seconds",
    "unread_events",
    "unreadable_rows",
]


def overview(endpoints: int) -> Overview:
    each = tuple(
        Each(n, f"tenant-{n}", "hook", EndpointState.ACTIVE, n, None, None if n % 2 else 60.0)
        for n in range(1, endpoints + 1)
    )
    return Overview(0, {}, {EndpointState.ACTIVE: endpoints}, each, frozenset(range(endpoints)))


def everything(endpoints: int = 2, tally: Tally | None = None) -> list[Family]:
    found, tally = overview(endpoints), tally or Tally()
    made = [*families(tally, Reading(), HEALTH, found, AGES), *of_endpoints(tally, found, is_old=False)]
    return [each._replace(samples=list(each.samples)) for each in made]


def test_each_name_is_one_of_prometheus_and_is_there_once() -> None:
    found = everything()
    assert max(Counter(each.name for each in found).values()) == 1
    for each in found:
        assert re.fullmatch(r"(webhookd|process)_[a-z0-9_]+", each.name)
        assert each.name.endswith("_total") == (each.kind == "counter"), each.name
        assert each.help.endswith(".")
        assert "\n" not in each.help


def test_the_help_of_what_the_database_says_says_so() -> None:
    alike = [each.name.removeprefix("webhookd_") for each in everything() if each.help.endswith(ALIKE)]
    assert sorted(alike) == OF_THE_DATABASE


def test_the_documentation_has_each_name_with_its_kind() -> None:
    rows = re.findall(
        r"^\| `(\w+)(?:\{[\w, ]+\})?` \| (\w+) \|", (ROOT / "docs/monitoring.md").read_text(), re.MULTILINE
    )
    assert sorted(rows) == sorted((each.name, each.kind) for each in everything())


def test_a_label_that_an_alert_looks_for_is_there_from_the_start() -> None:
    text = "".join(lines(everything()))
    for sample in (
        'webhookd_deliveries_total{result="exhausted"} 0',
        'webhookd_database_errors_total{kind="unavailable"} 0',
        'webhookd_backlog{state="held"} 0',
        'webhookd_connections_total{reused="true"} 0',
        'webhookd_endpoint_attempts_total{tenant="tenant-1",endpoint="hook",outcome="failed"} 0',
        'webhookd_endpoint_state{tenant="tenant-1",endpoint="hook",state="active"} 1',
    ):
        assert f"\n{sample}\n" in text


@pytest.mark.parametrize(
    ("status", "code"), [(200, "200"), (99, "other"), (600, "other"), (0, "other"), (999, "other")]
)
def test_a_receiver_that_makes_statuses_up_makes_no_series(status: int, code: str) -> None:
    tally = Tally()
    tally.attempts[False, status] = 2
    text = "".join(lines(everything(tally=tally)))
    assert f'webhookd_attempts_total{{outcome="failed",code="{code}"}} 2\n' in text


def test_nothing_is_told_of_a_database_that_was_not_seen() -> None:
    found = list(families(Tally(), Reading(), None, None, AGES))
    assert not [each for each in found if each.help.endswith(ALIKE)]
    view = [each.name for each in families(Tally(), Reading(), HEALTH, None, AGES) if each.help.endswith(ALIKE)]
    assert "webhookd_unread_age_seconds" in view, "the rest may take long, and does not hide it"
    assert "webhookd_endpoints" not in view
    kept = list(of_endpoints(Tally(), overview(1), is_old=True))
    assert [each.name for each in kept] == ["webhookd_endpoint_attempts_total"], "or rate() would break"


def test_ten_thousand_endpoints_are_written_whole() -> None:
    found = {each.name: each for each in text_string_to_metric_families("".join(lines(everything(10_000))))}
    assert len(found["webhookd_endpoint_attempts"].samples) == 20_000
    assert sum(sample.value for sample in found["webhookd_endpoint_owed"].samples) == 10_000 * 10_001 / 2
