"""Why an endpoint does not get an event."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.test_matching import endpoint, event
from webhookd.policy.matching import NO_PAYLOAD, WHY_NOT, Matcher, why_not
from webhookd.policy.payload_filter import UNSEEN, compiled

LARGE = compiled({"amount": {"gte": 100}})


@pytest.mark.parametrize(
    ("changes", "about", "reason"),
    [
        ({}, {}, None),
        ({"tenant": "*"}, {"tenant": "acme"}, None),
        ({"tenant": "acme"}, {}, 'tenant: it gets those of "acme", the event is of ""'),
        ({"events": ("bill.*", "a.b")}, {}, 'type: it subscribes to "bill.*" or "a.b"'),
        (
            {"events": ("*",)},
            {"type_": "webhookd.endpoint.disabled"},
            'type: it subscribes to "*", which leaves out our own webhookd.*',
        ),
        (
            {"filter": {"region": ("eu", "us")}},
            {"metadata": b'{"region": "asia"}'},
            'filter: "region" is "asia", it wants "eu" or "us"',
        ),
        (
            {"filter": {"region": ("eu",), "vip": ("true",)}},
            {"metadata": b'{"region": "eu"}'},
            'filter: "vip" is missing from the metadata, it wants "true"',
        ),
        ({"filter": {"region": ("eu",)}}, {}, 'filter: the event has no metadata, and "region" is asked for'),
        ({"filter": {"region": ("eu",)}}, {"metadata": b"[]"}, "filter: the metadata of the event is no JSON object"),
        ({"active": False}, {}, "inactive: it is switched off with active = false"),
        ({"data_filter": LARGE}, {"payload": b'{"amount": 100}'}, None),
        (
            {"data_filter": LARGE},
            {"payload": b'{"amount": 99}'},
            'payload: "amount" of the payload is 99, it wants {"gte": 100}',
        ),
        ({"data_filter": LARGE}, {}, NO_PAYLOAD),
        ({"data_filter": LARGE}, {"size": 1024 * 1024 + 1}, f"payload: {UNSEEN}"),
        ({"data_filter": LARGE, "active": False}, {}, "inactive: it is switched off with active = false"),
        ({"events": ("\x1b.x",)}, {}, r'type: it subscribes to "\u001b.x"'),
    ],
)
def test_the_reason(changes: dict[str, Any], about: dict[str, Any], reason: str | None) -> None:
    assert why_not(endpoint(**changes), event(**about)) == reason


@given(
    st.sampled_from(["", "acme", "*"]),
    st.sampled_from(["*", "order.*", "order.created", "webhookd.*"]),
    st.sampled_from([{}, {"region": ("eu",)}, {"region": ("1", "eu")}]),
    st.booleans(),
    st.sampled_from(["", "acme"]),
    st.sampled_from(["order.created", "bill", "webhookd.x"]),
    st.sampled_from([None, b"{", b"[]", b'{"region": "eu"}', b'{"region": 1}']),
)
def test_there_is_a_reason_exactly_where_matching_owes_nothing(
    tenant: str,
    pattern: str,
    wanted: dict[str, tuple[str, ...]],
    active: bool,
    of: str,
    type_: str,
    metadata: bytes | None,
) -> None:
    one, about = endpoint(tenant=tenant, events=(pattern,), filter=wanted, active=active), event(type_, of, metadata)
    reason = why_not(one, about)
    assert (reason is None) == bool(Matcher([one]).endpoints_for(about))
    assert reason is None or reason.partition(":")[0] in WHY_NOT
