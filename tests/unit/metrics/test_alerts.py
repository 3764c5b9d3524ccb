"""Alerts fire when they should and not otherwise, as promtool sees it, and look at nothing that is not there."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.unit.metrics.test_families import everything
from webhookd.metrics.exposition import lines

DOCS = Path(__file__).parents[3] / "docs"
RULES: Final = yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"][0]["rules"]
SERIES = re.compile(r"\b(?:webhookd|process)_[a-z0-9_]+")
MINUTES = 240
Series = dict[str, str]

# By each alert: series that fire it, and the like that do not; a start and a step are for all the time.
CASES: Final[dict[str, tuple[Series, Series]]] = {
    "WebhookdGone": ({'up{job="webhookd"}': "0"}, {'webhookd_build_info{job="webhookd"}': "1"}),
    "WebhookdNobodyDelivers": (
        {'webhookd_ready{instance="a"}': "0", 'webhookd_ready{instance="b"}': "0"},
        {'webhookd_ready{instance="a"}': "0", 'webhookd_ready{instance="b"}': "1"},
    ),
    "WebhookdDaemonDown": (
        {'up{job="w",instance="a"}': "0", 'webhookd_build_info{job="w",instance="b"}': "1"},
        {'up{job="w",instance="a"}': "1", 'up{job="another"}': "0", 'webhookd_build_info{job="w",instance="a"}': "1"},
    ),
    "WebhookdEventsUnread": (
        {"webhookd_unread_age_seconds": "200", "webhookd_events_read_total": "9"},
        {"webhookd_unread_age_seconds": "200", "webhookd_events_read_total": "0+6000"},
    ),
    "WebhookdDatabaseNotSeen": (
        {'webhookd_database_seen_age_seconds{part="view"}': "0+60"},
        {
            'webhookd_database_seen_age_seconds{part="view",instance="a"}': "0+60",
            'webhookd_database_seen_age_seconds{part="view",instance="b"}': "5",
            'webhookd_database_seen_age_seconds{part="rest"}': "400",
        },
    ),
    "WebhookdResultsWait": ({"webhookd_recorder_queue": "500"}, {"webhookd_recorder_queue": "0x220 500x4 0x20"}),
    "WebhookdDatabaseErrors": (
        {'webhookd_database_errors_total{kind="forbidden"}': "0+60"},
        {
            'webhookd_database_errors_total{kind="conflict"}': "0+60",
            'webhookd_database_errors_total{kind="refused"}': "0+60",
        },
    ),
    "WebhookdMostEndpointsFail": (
        {'webhookd_endpoints{state="failing"}': "3", 'webhookd_endpoints{state="active"}': "2"},
        {'webhookd_endpoints{state="failing"}': "3", 'webhookd_endpoints{state="active"}': "5"},
    ),
    "WebhookdMostAttemptsFail": (
        {
            'webhookd_attempts_total{outcome="failed",code="timeout"}': "0+60",
            'webhookd_attempts_total{outcome="delivered",code="200"}': "0+30",
        },
        {
            'webhookd_attempts_total{outcome="failed",code="timeout"}': "0+3",
            'webhookd_attempts_total{outcome="delivered",code="200"}': "0+1",
        },
    ),
    "WebhookdGivenUp": (
        {"webhookd_exhausted_last_hour": "0", "webhookd_missed_last_hour": "1"},
        {"webhookd_exhausted_last_hour": "0", "webhookd_missed_last_hour": "0"},
    ),
    "WebhookdRejected": (
        {'webhookd_deliveries_total{result="rejected"}': "0x220 1x20"},
        {'webhookd_deliveries_total{result="rejected"}': "3", 'webhookd_deliveries_total{result="discarded"}': "0+1"},
    ),
    "WebhookdOwedForLong": (
        {
            'webhookd_endpoint_oldest_owed_age_seconds{tenant="t",endpoint="e"}': "86400+60",
            'webhookd_endpoint_state{tenant="t",endpoint="e",state="failing"}': "1",
        },
        {
            'webhookd_endpoint_oldest_owed_age_seconds{tenant="t",endpoint="e"}': "86400+60",
            'webhookd_endpoint_state{tenant="t",endpoint="e",state="paused"}': "1",
            "webhookd_oldest_owed_age_seconds": "86400+60",
        },
    ),
    "WebhookdNearRetention": (
        {'webhookd_endpoint_cursor_age_seconds{tenant="t",endpoint="e"}': "440000"},
        {
            'webhookd_endpoint_oldest_owed_age_seconds{tenant="t",endpoint="e"}': "440000",
            'webhookd_endpoint_state{tenant="t",endpoint="e",state="active"}': "1",
            "webhookd_cursor_age_seconds": "440000",
        },
    ),
    "WebhookdEndpointFails": (
        {'webhookd_endpoint_state{tenant="t",endpoint="e",state="failing"}': "1"},
        {'webhookd_endpoint_state{tenant="t",endpoint="e",state="failing"}': "_x220 1x20"},
    ),
    "WebhookdEndpointDisabled": (
        {'webhookd_endpoint_state{tenant="t",endpoint="e",state="disabled"}': "_x190 1x50", "webhookd_build_info": "1"},
        {
            'webhookd_endpoint_state{tenant="t",endpoint="e",state="disabled"}': "1x160 _x20 1x60",
            "webhookd_build_info": "1",
        },
    ),
    "WebhookdEndpointRemoved": (
        {
            'webhookd_endpoint_state{tenant="t",endpoint="e",state="active"}': "1x200 stale",
            'webhookd_database_seen_age_seconds{part="rest"}': "5",
        },
        {
            'webhookd_endpoint_state{tenant="t",endpoint="e",state="active"}': "1x200 stale",
            'webhookd_endpoint_state{tenant="t",endpoint="e",state="failing"}': "_x200 1x40",
            'webhookd_database_seen_age_seconds{part="rest"}': "5",
        },
    ),
    "WebhookdFull": (
        {"webhookd_slots_in_use": "499", "webhookd_in_flight_limit": "500"},
        {"webhookd_slots_in_use": "300", "webhookd_in_flight": "900", "webhookd_in_flight_limit": "500"},
    ),
    "WebhookdLoopLate": ({"webhookd_loop_lag_seconds": "3"}, {"webhookd_loop_lag_seconds": "0.1"}),
    "WebhookdReloadRefused": (
        {"webhookd_config_last_reload_successful": "0"},
        {"webhookd_config_last_reload_successful": "1"},
    ),
    "WebhookdConfigurationsDiffer": (
        {'webhookd_configurations{instance="a"}': "2", 'webhookd_configurations{instance="b"}': "2"},
        {'webhookd_configurations{instance="a"}': "1", 'webhookd_configurations{instance="b"}': "1"},
    ),
    "WebhookdUnreadable": (
        {"webhookd_unreadable_rows": "0x200 1x40"},
        {"webhookd_unreadable_rows": "1"},
    ),
    "WebhookdSnapshotHeld": (
        {"webhookd_held_snapshot_age_seconds": "0+60"},
        {"webhookd_held_snapshot_age_seconds": "20"},
    ),
    "WebhookdPartitionsRunOut": (
        {
            'webhookd_partition_days_ahead{job="production"}': "2.5",
            'webhookd_partition_days_ahead{job="staging"}': "29.5",
        },
        {"webhookd_partition_days_ahead": "29.5"},
    ),
    "WebhookdRowsInDefault": (
        {"webhookd_default_partition_rows": "1"},
        {"webhookd_default_partition_rows": "0"},
    ),
    "WebhookdLogLinesDropped": (
        {"webhookd_log_lines_dropped_total": "0+10"},
        {"webhookd_log_lines_dropped_total": "10"},
    ),
    "WebhookdApiFails": (
        {
            'webhookd_api_requests_total{operation="v1.message.create",status="503"}': "0+1",
            'webhookd_api_requests_total{operation="v1.message.create",status="202"}': "0+1",
        },
        {
            'webhookd_api_requests_total{operation="v1.message.create",status="500"}': "0+1",
            'webhookd_api_requests_total{operation="v1.message.create",status="404"}': "0+60",
        },
    ),
}


def steady(values: str) -> str:
    """The same for four hours, where it is not said for how long."""
    return values if "x" in values else f"{values}x{MINUTES}"


def names(expression: str) -> set[str]:
    return set(SERIES.findall(expression))


@pytest.fixture(scope="module")
def there() -> set[str]:
    """What a scrape has."""
    return names("".join(lines(everything())))


def test_each_alert_has_its_cases() -> None:
    assert CASES.keys() == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_what_it_means_and_what_to_do(rule: dict[str, Any], there: set[str]) -> None:
    assert names(rule["expr"]) <= there
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "description", "action", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    heads = re.findall(r"^## (.*)$", (DOCS / page).read_text(), re.MULTILINE)
    assert anchor in [re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads]


def test_what_the_database_says_is_never_added_up() -> None:
    alike = {each.name for each in everything() if "never sum" in each.help}
    for expression in [rule["expr"] for rule in RULES] + panels():
        for inner in re.findall(
            r"sum(?: by \([\w, ]+\))? \(([^()]*(?:\([^()]*\))?[^()]*)\)|sum\(([^()]*)\)", expression
        ):
            assert not names("".join(inner)) & alike, expression


def test_promtool_takes_the_rules_and_each_fires_when_it_should(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not there; Debian's package prometheus has it")
    shutil.copy(DOCS / "alerts.yml", tmp_path)
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": steady(values)} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)',
                    "eval_time": "230m",
                    "exp_samples": [{"labels": "{}", "value": float(fires)}],
                }
            ],
        }
        for alert, cases in CASES.items()
        for fires, series in zip((True, False), cases, strict=True)
    ]
    (tmp_path / "test.json").write_text(
        json.dumps({"rule_files": ["alerts.yml"], "evaluation_interval": "5m", "tests": tests})
    )
    for arguments in (("check", "rules", "alerts.yml"), ("test", "rules", "test.json")):
        done = subprocess.run(
            [promtool, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_nothing_to_say_about_a_scrape() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not there; Debian's package prometheus has it")
    text = "".join(lines(everything()))
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=60
    )
    # Alerts and people count partitions, which are of a day each.
    assert done.stdout + done.stderr == 'webhookd_partition_days_ahead use base unit "seconds" instead of "days"\n'


# The dashboard.


def panels() -> list[str]:
    board = json.loads((DOCS / "grafana.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]


def test_the_dashboard_looks_at_what_is_there(there: set[str]) -> None:
    assert len(panels()) > 20
    for expression in panels():
        assert names(expression), expression
        assert names(expression) <= there, expression


def test_the_dashboard_has_its_rows_in_order_and_no_panel_over_another() -> None:
    board = json.loads((DOCS / "grafana.json").read_text())
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert rows == ["What to look at first", "Overview", "Endpoints", "Database", "Process"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_promtool_takes_each_expression_of_the_dashboard(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not there; Debian's package prometheus has it")
    filled = [
        re.sub(r"\$__rate_interval", "5m", each)
        .replace("$job", ".*")
        .replace("$tenant", ".*")
        .replace("$endpoint", ".*")
        for each in panels()
    ]
    rules = [{"record": f"r{n}", "expr": each} for n, each in enumerate(filled)]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}))
    arguments = (promtool, "check", "rules", "rules.json")
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
