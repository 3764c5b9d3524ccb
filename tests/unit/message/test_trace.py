"""The trace of an event goes on at its receiver, and nothing else gets into a header by it."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.message.test_request import request
from webhookd.message.trace import headers_of, trace_of

ID, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{ID}-{SPAN}-01"


def metadata(**members: object) -> bytes:
    return json.dumps({"region": "eu", **members}).encode()


def test_each_request_is_a_span_of_its_own_in_the_same_trace() -> None:
    traces = [trace_of(metadata(traceparent=PARENT, tracestate="a=1,b=2")) for _ in range(2)]
    sent = []
    for trace in traces:
        assert trace is not None
        assert (trace.trace_id, trace.parent_id, trace.flags) == (ID, SPAN, 1)
        headers = headers_of(trace)
        assert headers["tracestate"] == "a=1,b=2"
        assert headers["traceparent"] == f"00-{ID}-{trace.span_id}-01"
        sent.append(trace.span_id)
    assert SPAN not in sent
    assert sent[0] != sent[1]


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "nothing",
        PARENT.upper(),
        PARENT + "-more",
        f"ff-{ID}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{ID}-{'0' * 16}-01",
        f"00-{ID}-{SPAN}-1",
        f"00-{ID}-{SPAN}-01\r\nx-evil: 1",
        None,
        17,
        {"a": PARENT},
    ],
)
def test_what_is_no_traceparent_counts_as_none(parent: object) -> None:
    assert trace_of(metadata(traceparent=parent, tracestate="a=1")) is None


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    trace = trace_of(metadata(traceparent=f"01-{ID}-{SPAN}-ff-what-comes"))
    assert trace is not None
    assert headers_of(trace) == {"traceparent": f"00-{ID}-{trace.span_id}-03"}


@pytest.mark.parametrize(
    "state",
    [
        "",
        "a=\r\nx-evil: 1",
        "é=1",
        "a=1," * 200,
        None,
        5,
        "foo",
        "a=1,a=2",
        "A=1",
        "a=",
        "a= ",
        "a==",
        ",".join(f"k{n}=1" for n in range(33)),
    ],
)
def test_a_state_that_cannot_be_passed_on_is_left_out(state: object) -> None:
    trace = trace_of(metadata(traceparent=PARENT, tracestate=state))
    assert trace is not None
    assert list(headers_of(trace)) == ["traceparent"]


@given(
    st.dictionaries(
        st.sampled_from(["traceparent", "tracestate", "other"]), st.one_of(st.none(), st.text(), st.integers())
    )
)
def test_whatever_metadata_says_no_header_is_injected(members: dict[str, object]) -> None:
    trace = trace_of(json.dumps(members).encode())
    for name, value in ({} if trace is None else headers_of(trace)).items():
        assert re.fullmatch(r"[\x20-\x7e]+", value), name


@pytest.mark.parametrize("text", [None, b"null", b"[1]", b'"traceparent"', rb'{"traceparent": "\ud800"}'])
def test_metadata_of_any_kind_has_none(text: bytes | None) -> None:
    assert trace_of(text) is None


def test_an_event_without_one_has_no_header() -> None:
    made = request()
    assert made.trace is None
    assert not {"traceparent", "tracestate"} & made.headers.keys()


@pytest.mark.parametrize("state", [(), (("TraceState", "b=2"),)])
def test_a_header_of_the_endpoint_wins(state: tuple[tuple[str, str], ...]) -> None:
    made = request(metadata=metadata(traceparent=PARENT, tracestate="a=1"), headers=(("Traceparent", "mine"), *state))
    assert made.headers["traceparent"] == "mine"
    assert made.headers.get("tracestate") == ("b=2" if state else None), "that of the event is about another trace"
    assert made.trace is None


@pytest.mark.parametrize("state", ["a=1", "a=1,b=2", "a=1 , b=2", "t@v=x y", "a=1,,b=2"])
def test_a_state_is_passed_on_without_blanks_between_members(state: str) -> None:
    trace = trace_of(metadata(traceparent=PARENT, tracestate=state))
    assert trace is not None
    assert trace.state == ",".join(part.strip() for part in state.split(",") if part)
