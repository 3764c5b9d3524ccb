"""Which endpoints an event reaches."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.message.formats import FORMATS
from webhookd.message.signing import SCHEMES
from webhookd.model import Endpoint, Event, RetryPolicy
from webhookd.policy import matching
from webhookd.policy.matching import CACHED_BYTES, CACHED_NAME, Matcher, matches_type, passes_filter, why_not


def endpoint(**changes: Any) -> Endpoint:
    plain = Endpoint(
        id=1,
        tenant="",
        name="hook",
        url="https://hooks.example.com/",
        events=("*",),
        format=FORMATS["raw"],
        signature=SCHEMES["none"],
        secrets=(),
        retry=RetryPolicy(),
        timeout=20.0,
        max_in_flight=10,
    )
    return replace(plain, **changes)


def event(
    type_: str = "order.created",
    tenant: str = "",
    metadata: bytes | None = None,
    size: int = 2,
    payload: bytes | None = None,
) -> Event:
    return Event(1, "evt_1", datetime(2021, 1, 27, tzinfo=UTC), type_, tenant, None, metadata, None, size, 0, payload)


def reached(endpoints: list[Endpoint], about: Event) -> list[str]:
    return [found.name for found in Matcher(endpoints).endpoints_for(about)]


segments = st.text("abcxyz_-09", min_size=1, max_size=6)
types = st.lists(segments, min_size=1, max_size=5).map(".".join)


@pytest.mark.parametrize(
    ("pattern", "type_", "wanted"),
    [
        ("order.created", "order.created", True),
        ("order.created", "order.created.eu", False),
        ("order.created", "order", False),
        ("order.*", "order.created", True),
        ("order.*", "order.created.eu", True),
        ("order.*", "order", False),
        ("order.*", "order.", False),
        ("order.*", "orders.created", False),
        ("order.line.*", "order.line.added", True),
        ("order.line.*", "order.created", False),
        ("*", "order", True),
        ("*", "order.created.eu", True),
        ("*", "webhookd.endpoint.disabled", False),
        ("*", "webhookdish.event", True),
        ("webhookd.*", "webhookd.endpoint.disabled", True),
        ("webhookd.endpoint.disabled", "webhookd.endpoint.disabled", True),
    ],
)
def test_patterns(pattern: str, type_: str, wanted: bool) -> None:
    assert matches_type(pattern, type_) is wanted


@given(types, types)
def test_an_exact_pattern_matches_itself_alone(pattern: str, type_: str) -> None:
    assert matches_type(pattern, type_) is (pattern == type_)


@given(types, types)
def test_a_prefix_matches_what_lies_below_it(prefix: str, below: str) -> None:
    assert matches_type(f"{prefix}.*", f"{prefix}.{below}")
    assert not matches_type(f"{prefix}.*", prefix)
    assert not matches_type(f"{prefix}.*", f"{prefix}x.{below}")
    assert not matches_type(f"{prefix}.*", f"x{prefix}.{below}")


@pytest.mark.parametrize(
    ("filter_", "metadata", "passes"),
    [
        ({}, None, True),
        ({}, b"[]", True),
        ({"region": ("eu",)}, b'{"region":"eu"}', True),
        ({"region": ("eu", "us")}, b'{"region":"us"}', True),
        ({"region": ("eu",)}, b'{"region":"us"}', False),
        ({"region": ("eu",)}, b'{"other":"eu"}', False),
        ({"region": ("eu",)}, b'{"region":["eu"]}', True),
        ({"region": ("eu", "us")}, b'{"region":["uk","us",7]}', True),
        ({"region": ("eu",)}, b'{"region":["us"]}', False),
        ({"region": ("eu",)}, b'{"region":[]}', False),
        ({"region": ("eu",)}, b'{"region":[["eu"]]}', False),
        ({"region": ("eu",)}, b'{"region":{"eu":"eu"}}', False),
        ({"region": ('["eu"]',)}, b'{"region":["eu"]}', True),
        ({"n": ("1", "null")}, b'{"n":[2,null]}', True),
        ({"region": ("eu",)}, None, False),
        ({"region": ("eu",)}, b'"eu"', False),
        ({"region": ("eu",)}, b"null", False),
        ({"region": ("eu",)}, b'["region","eu"]', False),
        ({"region": ("eu",), "plan": ("pro",)}, b'{"region":"eu","plan":"pro","more":1}', True),
        ({"region": ("eu",), "plan": ("pro",)}, b'{"region":"eu"}', False),
        ({"n": ("1",)}, b'{"n":1}', True),
        ({"n": ("1",)}, b'{"n":"1"}', True),
        ({"n": ("1.1",)}, b'{"n":1.10}', True),
        ({"n": ("true",)}, b'{"n":true}', True),
        ({"n": ("null",)}, b'{"n":null}', True),
        ({"n": ("1",)}, b'{"n":true}', False),
        ({"name": ("Zoë",)}, b'{"name":"Zo\\u00eb"}', True),
    ],
)
def test_filters(filter_: dict[str, tuple[str, ...]], metadata: bytes | None, passes: bool) -> None:
    assert passes_filter(endpoint(filter=filter_), metadata) is passes


values = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text("abc1{}", max_size=4))


@given(st.dictionaries(st.sampled_from("abc"), values), st.dictionaries(st.sampled_from("abc"), values))
def test_a_filter_asks_for_each_of_its_keys(wanted: dict[str, Any], labels: dict[str, Any]) -> None:
    def text(value: object) -> str:
        return value if isinstance(value, str) else json.dumps(value)

    found = passes_filter(endpoint(filter={k: (text(v),) for k, v in wanted.items()}), json.dumps(labels).encode())
    assert found is all(key in labels and text(labels[key]) == text(value) for key, value in wanted.items())


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param(b'{"k":' + b"[" * 300 + b"]" * 300 + b"}", id="300 levels"),
        pytest.param(b'{"k":' + b"[" * 3000 + b"]" * 3000 + b"}", id="3000 levels"),
        pytest.param(rb'{"k":"\ud800"}', id="lone surrogate"),
        pytest.param(b'{"k":1e999}', id="infinite"),
        pytest.param(b'{"k":123456789012345678901234567890}', id="30 digits"),
        pytest.param(b"not json", id="not json"),
    ],
)
def test_no_metadata_that_postgres_accepts_raises(metadata: bytes) -> None:
    assert not passes_filter(endpoint(filter={"k": ("v",)}), metadata)


@pytest.mark.parametrize("number", [10**22, 1e22, 1e-7, 123456789012345678901234567890])
def test_a_number_of_a_filter_matches_the_same_number(number: float) -> None:
    text = json.dumps(number)
    assert passes_filter(endpoint(filter={"n": (text,)}), f'{{"n":{text}}}'.encode())


def test_exactly_the_tenant_is_reached() -> None:
    endpoints = [endpoint(name=f"of-{tenant or 'nobody'}", tenant=tenant) for tenant in ("", "a", "b", "*")]
    assert reached(endpoints, event(tenant="")) == ["of-nobody", "of-*"]
    assert reached(endpoints, event(tenant="a")) == ["of-a", "of-*"]
    assert reached(endpoints, event(tenant="A")) == ["of-*"]
    assert reached(endpoints[:3], event(tenant="c")) == []
    # An application may write any tenant: one that is called like the wildcard reaches only who asked for all.
    assert reached(endpoints, event(tenant="*")).count("of-a") == 0


def test_an_endpoint_is_reached_once_however_many_patterns_match() -> None:
    assert reached([endpoint(events=("order.*", "*", "order.created"))], event()) == ["hook"]


def test_an_endpoint_of_every_tenant_is_reached_once_by_a_tenant_of_that_name() -> None:
    assert reached([endpoint(tenant="*")], event(tenant="*")) == ["hook"]


def test_an_inactive_endpoint_is_owed_nothing() -> None:
    assert reached([endpoint(active=False), endpoint(name="other")], event()) == ["other"]


def test_the_order_is_that_of_the_configuration() -> None:
    names = [f"e{n}" for n in range(20)]
    assert reached([endpoint(name=name) for name in names], event()) == names


def test_a_filter_is_asked_for_each_event_though_the_type_is_remembered() -> None:
    matcher = Matcher([endpoint(filter={"region": ("eu",)}), endpoint(name="all")])
    for metadata, names in ((b'{"region":"eu"}', ["hook", "all"]), (b'{"region":"us"}', ["all"]), (None, ["all"])):
        assert [found.name for found in matcher.endpoints_for(event(metadata=metadata))] == names


def test_more_types_than_are_remembered_are_answered_alike() -> None:
    matcher = Matcher([endpoint(events=("order.*",))])
    for n in range(CACHED_BYTES // 500 + 50):
        assert len(matcher.endpoints_for(event(f"order.{n}"))) == 1
        assert not matcher.endpoints_for(event(f"other.{n}"))
    assert len(matcher.endpoints_for(event("order.0"))) == 1


patterns = st.one_of(
    types, types.map(lambda type_: type_ + ".*"), st.sampled_from(["*", ".*", "a.", "a..*", "webhookd.*"])
)
labels = st.dictionaries(st.sampled_from("kl"), st.sampled_from(["1", "2", 1, True, None, [1]]))


@given(
    st.lists(
        st.tuples(
            st.lists(patterns, min_size=1, max_size=3),
            st.sampled_from(["", "acme", "*"]),
            st.dictionaries(
                st.sampled_from("kl"), st.lists(st.sampled_from(["1", "2", "true"]), min_size=1).map(tuple)
            ),
        ),
        max_size=8,
    ),
    st.one_of(types, st.sampled_from(["", ".", "a.", "a..", "*", "webhookd.x", "a.b.c"])),
    st.sampled_from(["", "acme", "*"]),
    st.one_of(st.none(), st.just(b"[]"), labels.map(lambda found: json.dumps(found).encode())),
)
def test_whoever_has_nothing_against_it_is_reached_in_order(
    subscriptions: list[tuple[list[str], str, dict[str, tuple[str, ...]]]],
    type_: str,
    tenant: str,
    metadata: bytes | None,
) -> None:
    endpoints = [
        endpoint(id=n, name=f"hook-{n}", events=tuple(events), tenant=of, filter=filter_)
        for n, (events, of, filter_) in enumerate(subscriptions)
    ]
    about = event(type_, tenant, metadata)
    matcher = Matcher(endpoints)
    expected = [each for each in endpoints if why_not(each, about) is None]
    expected.sort(key=lambda each: each.tenant != tenant)  # its own first
    for _ in range(2):  # the second time from what is remembered
        assert list(matcher.endpoints_for(about)) == expected


def test_metadata_is_parsed_once_whoever_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []

    def loads(text: bytes) -> object:
        parsed.append(text)
        return json.JSONDecoder().decode(text.decode())

    monkeypatch.setattr("webhookd.policy.matching.json.loads", loads)
    matcher = Matcher([endpoint(id=n, filter={"region": ("eu",), "tier": (str(n % 2),)}) for n in range(300)])
    assert len(matcher.endpoints_for(event(metadata=b'{"region": "eu", "tier": 1}'))) == 150
    assert len(parsed) == 1
    assert len(Matcher([endpoint(id=n) for n in range(9)]).endpoints_for(event(metadata=b"{}"))) == 9
    assert len(parsed) == 1  # nobody filters


def test_only_those_are_looked_at_whose_filter_may_let_it_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    failing_key = matching._failing_key

    def spy(asked_of: Endpoint, labels: matching._Texts) -> str | None:
        asked.append(asked_of.id)
        return failing_key(asked_of, labels)

    monkeypatch.setattr(matching, "_failing_key", spy)
    matcher = Matcher([endpoint(id=n, filter={"shop": (str(n),)}) for n in range(8_000)])
    assert [found.id for found in matcher.endpoints_for(event(metadata=b'{"shop": 77}'))] == [77]
    assert asked == [77]


def test_a_filter_that_thousands_have_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    failing_key = matching._failing_key

    def spy(asked_of: Endpoint, labels: matching._Texts) -> str | None:
        asked.append(asked_of.id)
        return failing_key(asked_of, labels)

    monkeypatch.setattr(matching, "_failing_key", spy)
    filters = [{"region": ("eu",), "tier": (str(n % 2),)} if n % 3 else {} for n in range(6_000)]
    matcher = Matcher([endpoint(id=n, filter=each) for n, each in enumerate(filters)])
    found = [found.id for found in matcher.endpoints_for(event(metadata=b'{"region": "eu", "tier": 1}'))]
    assert found == [n for n in range(6_000) if n % 3 == 0 or n % 2 == 1]
    assert len(asked) == 2


def test_what_is_remembered_of_types_is_bounded_in_bytes() -> None:
    matcher = Matcher([endpoint(id=n) for n in range(8_000)])
    for n in range(200):
        matcher.endpoints_for(event(f"order.{n}"))
        matcher.endpoints_for(event(f"{n}" * 1_000_000))
        assert 0 < matcher._cached_bytes <= CACHED_BYTES
    remembered = [(tenant, type_, found) for tenant, types in matcher._cached.items() for type_, found in types.items()]
    assert max(len(tenant) + len(type_) for tenant, type_, _ in remembered) <= CACHED_NAME
    assert sum(found.size for *_, found in remembered) == matcher._cached_bytes


changes = st.lists(
    st.tuples(
        st.integers(1, 6),
        st.sampled_from(["", "acme", "*"]),
        st.lists(st.sampled_from(["*", "order.*", "order.created", "user.left"]), min_size=1, max_size=3),
        st.booleans(),
        st.booleans(),
    ),
    max_size=30,
)


@given(changes)
def test_what_is_put_and_dropped_is_as_if_made_anew(steps: list[tuple[int, str, list[str], bool, bool]]) -> None:
    matcher, there = Matcher([]), dict[int, Endpoint]()
    about = [event(type_, tenant) for type_ in ("order.created", "user.left") for tenant in ("", "acme", "other")]
    for number, tenant, events, active, gone in steps:
        there.pop(number, None)
        if gone:
            matcher.drop(number)
        else:
            there[number] = endpoint(id=number, tenant=tenant, events=tuple(events), active=active)
            matcher.put(there[number])
        anew = Matcher(there.values())
        for each in about:
            assert sorted(found.id for found in matcher.endpoints_for(each)) == sorted(
                found.id for found in anew.endpoints_for(each)
            )
        assert matcher._cached_bytes == sum(
            found.size for types in matcher._cached.values() for found in types.values()
        )


def test_what_is_put_keeps_its_place() -> None:
    matcher = Matcher([endpoint(id=n, name=str(n)) for n in (1, 2, 3)])
    matcher.put(endpoint(id=2, name="new", events=("order.*",)))
    assert [found.name for found in matcher.endpoints_for(event())] == ["1", "new", "3"]


def test_a_number_that_python_does_not_make_keeps_nobody_from_what_is_beside_it() -> None:
    digits = "9" * 5000
    assert passes_filter(endpoint(filter={"k": ("v",)}), f'{{"n":[-{digits}],"k":"v"}}'.encode())
    assert passes_filter(endpoint(filter={"n": (digits,)}), f'{{"n":{digits}}}'.encode())


def test_thousands_of_levels_keep_nobody_from_what_is_beside_them() -> None:
    deep = "[" * 5000 + "]" * 5000
    metadata = f' {{"deep": {deep}, "k": "v", "n": 1.50, "no": null, "\\u0061": true}}'.encode()
    for key, value in (("k", "v"), ("n", "1.5"), ("no", "null"), ("a", "true")):
        assert passes_filter(endpoint(filter={key: (value,)}), metadata)
        assert not passes_filter(endpoint(filter={key: ("other",)}), metadata)
    assert not passes_filter(endpoint(filter={"k": ("v",)}), f"[{deep}]".encode())


@pytest.mark.parametrize("levels", [500, 900, 990, 1000, 1500])
def test_no_depth_raises(levels: int) -> None:
    metadata = b'{"k":' + b"[" * levels + b"]" * levels + b"}"
    assert not passes_filter(endpoint(filter={"k": ("v",)}), metadata)
    assert why_not(endpoint(filter={"k": ("v",)}), event(metadata=metadata)) is not None
