"""The text that Prometheus reads: read back by its own client, and written a slice at a time."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from webhookd.metrics.exposition import AT_A_TIME, Family, by, escaped, histogram, labels, lines, one, pieces
from webhookd.tally import Histogram


def read(*families: Family) -> dict[str, list[tuple[str, dict[str, str], float]]]:
    found = text_string_to_metric_families("".join(lines(families)))
    return {each.name: [(s.name, s.labels, s.value) for s in each.samples] for each in found}


@given(st.text())
def test_a_label_comes_back_as_it_was(value: str) -> None:
    sent = value.encode(errors="replace").decode()
    ((_, found, _),) = read(Family("f", "gauge", "help", [(labels(a=value, b="x"), 1)]))["f"]
    assert found == {"a": sent, "b": "x"}
    assert "\n" not in escaped(value)


@given(st.lists(st.floats(0, 100), max_size=50))
def test_a_histogram_counts_up_to_each_bound(values: list[float]) -> None:
    of = Histogram((0.5, 1.0, 25.0))
    for value in values:
        of.observe(value)
    found = {(name, labels_.get("le")): value for name, labels_, value in read(histogram("h", "help", of))["h"]}
    for bound in ("0.5", "1", "25"):
        assert found["h_bucket", bound] == sum(value <= float(bound) for value in values)
    assert found["h_bucket", "+Inf"] == found["h_count", None] == len(values)
    assert found["h_sum", None] == pytest.approx(sum(values))


def test_what_has_no_value_has_no_sample() -> None:
    found = read(
        Family("none", "gauge", "help", one(None)), Family("some", "gauge", "help", by("k", {"a": 1, "b": 2.5}))
    )
    assert found == {"none": [], "some": [("some", {"k": "a"}, 1), ("some", {"k": "b"}, 2.5)]}


def test_help_and_type_come_first_and_once() -> None:
    written = list(lines([Family("f_total", "counter", "What it is.", by("k", {"a": 1}))]))
    assert written == ["# HELP f_total What it is.\n# TYPE f_total counter\n", 'f_total{k="a"} 1\n']


async def test_others_have_their_turn_between_slices() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    many = Family("f", "gauge", "help", ((labels(n=str(n)), n) for n in range(10 * AT_A_TIME)))
    written = await pieces([many])
    beside.cancel()
    assert b"".join(written).count(b"\n") == 10 * AT_A_TIME + 2
    assert max(map(len, written)) < 64 * 1024
    assert turns >= 9
