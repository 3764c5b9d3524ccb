import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.message.formats import FORMATS, compile_header_value, compile_template
from webhookd.model import Event, HeaderValue

SOURCE = "https://shop.example/events"
AWKWARD = [
    b"1.10",
    b"123456789012345678901234567890",
    b'{"a":1,"a":2}',
    rb'"\u0000"',
    rb'{"lone":"\ud800"}',
    b' { "a" :\n[ ] }\t',
    b"1e999",
    b"[" * 900 + b"]" * 900,
    '"grün %b %s $type 😀"'.encode(),
    b"null",
]


def event(**changes: Any) -> Event:
    plain = Event(
        id=1,
        event_id="evt_1",
        created_at=datetime(2021, 1, 27, 16, 23, 9, tzinfo=UTC),
        type="order.created",
        tenant="",
        ordering_key=None,
        metadata=None,
        occurred_at=None,
        size=0,
    )
    return plain._replace(**changes)


# What Postgres can hold: text without NUL and surrogates; json of any shape, written in any way.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
scalars = st.one_of(
    st.sampled_from(AWKWARD),
    st.integers().map(lambda n: b"%d" % n),
    st.decimals(allow_nan=False, allow_infinity=False).map(lambda n: str(n).encode()),
    st.text().map(lambda text: json.dumps(text).encode()),
)
spaces = st.sampled_from([b"", b" ", b"\n\t "])
payloads = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(lambda items, s: b"[" + (b"," + s).join(items) + s + b"]", st.lists(inner, max_size=4), spaces),
        st.builds(
            lambda items, s: b"{" + b",".join(json.dumps(k).encode() + s + b":" + s + v for k, v in items) + s + b"}",
            st.lists(st.tuples(st.text(max_size=5), inner), max_size=4),
            spaces,
        ),
    ),
    max_leaves=8,
)
objects = st.lists(st.tuples(st.text(max_size=5), payloads), max_size=4)
times = st.datetimes(
    datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.sampled_from([UTC, timezone(timedelta(hours=-5))])
)
events = st.builds(
    event,
    type=texts,
    tenant=texts,
    ordering_key=st.none() | texts,
    metadata=st.none() | st.just(b'{"subject":"a\\nb","n":1.10}'),
    created_at=times,
    occurred_at=st.none() | times,
)


def written(members: list[tuple[str, bytes]]) -> bytes:
    return b"{" + b" , ".join(json.dumps(key).encode() + b" : " + value for key, value in members) + b"\n}"


def made(text: str, of: Event) -> str:
    value = compile_header_value(text)
    assert callable(value)
    return value(of, b"{}")


def body(template: object, of: Event, payload: bytes = b"{}") -> bytes:
    return compile_template(template)(of, payload, SOURCE).content


@pytest.fixture
def far_zone() -> Iterator[None]:
    """The process runs in a zone far from UTC."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "XXX+11")
        time.tzset()
        yield
    time.tzset()


class TestBuiltIn:
    def test_standard(self) -> None:
        assert FORMATS["standard"](event(), b'{"id": 1.10}', SOURCE) == (
            "application/json",
            b'{"type":"order.created","timestamp":"2021-01-27T16:23:09Z","data":{"id": 1.10}}',
            (),
        )

    def test_raw(self) -> None:
        assert FORMATS["raw"](event(), b"1.10", SOURCE) == ("application/json", b"1.10", ())

    def test_cloudevents(self) -> None:
        made_of = event(tenant="acme", ordering_key="order-7", metadata=b'{"subject":"order/7"}')
        assert FORMATS["cloudevents"](made_of, b"1.10", SOURCE) == (
            "application/cloudevents+json; charset=utf-8",
            b'{"specversion":"1.0","id":"evt_1","source":"https://shop.example/events","type":"order.created",'
            b'"time":"2021-01-27T16:23:09Z","subject":"order/7","partitionkey":"order-7","tenant":"acme",'
            b'"datacontenttype":"application/json","data":1.10}',
            (),
        )

    def test_cloudevents_binary(self) -> None:
        made_of = event(type='Euro € 😀 "100%"', tenant="acme")
        assert FORMATS["cloudevents-binary"](made_of, b"1.10", SOURCE) == (
            "application/json",
            b"1.10",
            (
                ("ce-specversion", "1.0"),
                ("ce-id", "evt_1"),
                ("ce-source", SOURCE),
                ("ce-type", "Euro%20%E2%82%AC%20%F0%9F%98%80%20%22100%25%22"),
                ("ce-time", "2021-01-27T16:23:09Z"),
                ("ce-tenant", "acme"),
            ),
        )

    @pytest.mark.parametrize("invalid", ["", "a\x01", "\x7f", "\x85", "\ufdd0", "\ufffe", "\U0010ffff"])
    def test_cloudevents_omits_what_is_no_valid_attribute(self, invalid: str) -> None:
        made_of = event(tenant=invalid, ordering_key=invalid, metadata=json.dumps({"subject": invalid}).encode())
        assert json.loads(FORMATS["cloudevents"](made_of, b"1", SOURCE).content).keys() == {
            *("specversion", "id", "source", "type", "time", "datacontenttype", "data")
        }

    @pytest.mark.parametrize("metadata", [rb'{"subject":"\ud800"}', b'{"subject":7}', b'{"subject":null}', b"[1]"])
    def test_cloudevents_takes_a_subject_that_is_a_valid_string_only(self, metadata: bytes) -> None:
        assert "subject" not in json.loads(FORMATS["cloudevents"](event(metadata=metadata), b"1", SOURCE).content)

    @pytest.mark.parametrize(
        ("when", "iso"),
        [
            (datetime(2021, 1, 1, tzinfo=timezone(timedelta(hours=2))), "2020-12-31T22:00:00Z"),
            (datetime(2021, 1, 1, 0, 0, 0, 120, tzinfo=UTC), "2021-01-01T00:00:00.000120Z"),
            (datetime.max, "9999-12-31T23:59:59.999999Z"),  # `infinity`, as the driver gives it
        ],
    )
    def test_timestamp_is_when_it_occurred(self, when: datetime, iso: str, far_zone: None) -> None:
        assert json.loads(FORMATS["standard"](event(occurred_at=when), b"1", SOURCE).content)["timestamp"] == iso

    def test_is_read_only(self) -> None:
        with pytest.raises(TypeError):
            FORMATS["mine"] = FORMATS["raw"]  # type: ignore[index]

    @pytest.mark.parametrize("name", FORMATS)
    @given(of=events, payload=payloads)
    def test_payload_survives(self, name: str, of: Event, payload: bytes) -> None:
        made_of = FORMATS[name](of, payload, SOURCE)
        assert made_of.content.endswith((payload, payload + b"}"))
        assert made_of == FORMATS[name](of, payload, SOURCE)
        json.loads(made_of.content)
        for header, value in made_of.headers:
            assert re.fullmatch(r"ce-[a-z0-9]{1,20}", header)
            assert re.fullmatch(r"[!-~]*", value)
            assert '"' not in value

    @given(of=events)
    def test_binary_headers_say_what_the_structured_body_says(self, of: Event) -> None:
        structured = json.loads(FORMATS["cloudevents"](of, b"1", SOURCE).content)
        del structured["data"], structured["datacontenttype"]
        headers = FORMATS["cloudevents-binary"](of, b"1", SOURCE).headers
        assert {name: unquote(value, errors="strict") for name, value in headers} == {
            f"ce-{name}": value for name, value in structured.items()
        }
        assert structured["type"] == of.type


class TestTemplate:
    def test_system_a(self) -> None:
        template = {"event": {"type": "$type", "resource": "$data"}}
        assert body(template, event(), b'{"id":1.10}') == b'{"event":{"type":"order.created","resource":{"id":1.10}}}'

    def test_system_b(self) -> None:
        template = {"content": "$data", "timestamp": "$timestamp_seconds", "type": "$type"}
        assert body(template, event(occurred_at=datetime(2021, 1, 26, 18, 23, 9, tzinfo=UTC)), b'{"id":1.10}') == (
            b'{"content":{"id":1.10},"timestamp":1611685389,"type":"order.created"}'
        )

    def test_system_d(self) -> None:
        template = {
            "event_time": "$timestamp",
            "event_type": "$type",
            "current_context": "$metadata",
            "data": "$data",
        }
        assert body(template, event(metadata=b'{"user": 1.10}'), b"[1]") == (
            b'{"event_time":"2021-01-27T16:23:09Z","event_type":"order.created",'
            b'"current_context":{"user": 1.10},"data":[1]}'
        )

    def test_literals(self) -> None:
        template = {"a": [1, 2.5, True, '100% grün "$$"', ""], "%b": {}, "$type": []}
        assert body(template, event()).decode() == ('{"a":[1,2.5,true,"100% grün \\"$\\"",""],"%b":{},"$type":[]}')

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("$type", b'"order.created"'),
            ("${type}", b'"order.created"'),
            ("$event_id", b'"evt_1"'),
            ("$tenant", b'"acme"'),
            ("$timestamp_seconds", b"1611764589"),
            ("${timestamp_seconds}", b"1611764589"),
            ("$data", b'"payload"'),
            ("$metadata.n", b"1.10"),
            ("$metadata.s", rb'"\u00e9\""'),
            ("$metadata.a.b", b'[ "]}" , {"n":2}]'),
            ("$metadata.a/b", b"5"),
            ("${metadata.two words}", b"true"),
            ("$metadata.missing", b"null"),
            ("$metadata.é", b"6"),
            ("$metadata.in.n", b"1.10"),
            ("${metadata.in.deeper.list}", b"[1, 2]"),
            ("$metadata.in.a.b", b"null"),  # below the first level a name has no dots
            ("$metadata.in.missing.n", b"null"),
            ("$metadata.s.n", b"null"),
            ("$metadata.missing|null", b"null"),
            ("$metadata.missing|0", b"0"),
            ("$metadata.missing|1.10", b"1.10"),
            ("$metadata.missing| true ", b"true"),
            ('$metadata.missing|"null"', b'"null"'),
            ("$metadata.missing|a word", b'"a word"'),
            ("${metadata.missing|}", b'""'),
            ("${metadata.in.missing|[]}", b"[]"),
            ("$metadata.missing|{}", b"{}"),
            ("$metadata.null|0", b"0"),
            ("$metadata.in.n|0", b"1.10"),
        ],
    )
    def test_whole_string_becomes_the_value(self, text: str, value: bytes) -> None:
        metadata = (
            rb'{"n": 0, "n": 1.10,"s":"\u00e9\"", "a.b" :[ "]}" , {"n":2}] , "a/b":5,"two words":true,"\u00e9":6,'
            rb'"a":{"b":"not this one"},"in":{"n": 1.10 ,"a.b":7,"deeper":{"list": [1, 2]}},"null":null}'
        )
        assert body([text], event(tenant="acme", metadata=metadata), b'"payload"') == b"[" + value + b"]"

    def test_the_whole_event(self) -> None:
        of = event(tenant="acme", metadata=b'{"n": 1.10}')
        assert body({"event": "$event"}, of, b'{"id": 2.50}') == (
            b'{"event":{"id":"evt_1","type":"order.created","tenant":"acme","timestamp":"2021-01-27T16:23:09Z",'
            b'"metadata":{"n": 1.10},"data":{"id": 2.50}}}'
        )
        assert json.loads(body("$event", event(), b"[]"))["metadata"] is None

    @pytest.mark.parametrize("text", ["$metadata", "$metadata.key"])
    def test_no_metadata_is_null(self, text: str) -> None:
        assert body(text, event()) == b"null"

    @pytest.mark.parametrize("metadata", [b"null", b'["key", 1]', b'"key"', b"7", b'[{"key":1}]'])
    def test_metadata_that_is_no_object_has_no_keys(self, metadata: bytes) -> None:
        assert body(["$metadata", "$metadata.key"], event(metadata=metadata)) == b"[" + metadata + b",null]"

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("$type at $timestamp.", "order.created at 2021-01-27T16:23:09Z."),
            ("id=${event_id}x", "id=evt_1x"),
            ("$timestamp_seconds$$", "1611764589$"),
            ("$metadata.n!$metadata.missing!$metadata.null", "1.10!!"),
            ("<$metadata.s>", '<é"\\\n>'),
            ("<$metadata.list>", '<["a", 1.10]>'),
            ("$metadata.a.b and $metadata.n.", "dotted and 1.10."),
            ("$$type", "$type"),
            ("$$metadata.n", "$metadata.n"),
            ("${metadata.missing|nobody} has ${metadata.n|2}", "nobody has 1.10"),
            ('${metadata.null|"no one"}!', "no one!"),
            ("$metadata.n|$type", "1.10|order.created"),
            ("to $metadata.missing|nobody", "to |nobody"),  # a default of a part stands in braces
        ],
    )
    def test_longer_string_holds_text(self, text: str, value: str) -> None:
        metadata = rb'{"n":1.10,"null":null,"s":"\u00e9\"\\\n","list":["a", 1.10],"a.b":"dotted"}'
        assert json.loads(body(text, event(metadata=metadata))) == value

    @given(of=events, payload=payloads, members=objects)
    def test_everything_survives(self, of: Event, payload: bytes, members: list[tuple[str, bytes]]) -> None:
        metadata = written(members)
        template = {"%": ["$data", "$metadata"], "t": "$type", "both": "100% $tenant/$type"}
        content = body(template, of._replace(metadata=metadata), payload)
        assert content.startswith(b'{"%":[' + payload + b"," + metadata + b"]")
        rest = json.loads(content)
        assert (rest["t"], rest["both"]) == (of.type, f"100% {of.tenant}/{of.type}")

    @given(members=objects, data=st.data())
    def test_metadata_value_is_verbatim(self, members: list[tuple[str, bytes]], data: st.DataObject) -> None:
        usable = {key: value for key, value in members if key and not set(key) & set("{}|")}
        of = event(metadata=written(members))
        for key, value in usable.items():
            assert body(f"${{metadata.{key}}}", of) == value.strip()
            assert isinstance(json.loads(body(f"<${{metadata.{key}}}>", of)), str)

    def test_depth_costs_no_stack(self) -> None:
        deep = b"[" * 6000 + b"]" * 6000
        assert body("$metadata.key", event(metadata=b'{"deep":' + deep + b',"key":1}')) == b"1"

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            ("$tpye", "unknown placeholder $tpye; known are $type"),
            ({"a": ["x ${evnt_id}"]}, "unknown placeholder $evnt_id; known are"),
            ("${metadata.}", "unknown placeholder $metadata.; known are"),
            ("costs $5", "a $ starts no placeholder in 'costs $5'; known are"),
            ("$", "a $ starts no placeholder in '$'; known are"),
            ("${type", "a $ starts no placeholder in '${type'; known are"),
            ("data: $data", "$data is a whole JSON value and cannot be part of a longer string"),
            ("an $event", "$event is a whole JSON value and cannot be part of a longer string"),
            ("${type|nothing}", "unknown placeholder $type|nothing; known are"),
            ("$metadata$type", "$metadata is a whole JSON value and cannot be part of a longer string"),
            ("$metadata.", "$metadata is a whole JSON value and cannot be part of a longer string"),
            ({"n": float("nan")}, "a template cannot hold nan, which JSON has no number for"),
            ({"n": float("-inf")}, "a template cannot hold -inf, which JSON has no number for"),
            ([date(2021, 1, 1)], "a template holds tables, lists, strings, numbers and booleans, not a date"),
            (None, "a template holds tables, lists, strings, numbers and booleans, not a NoneType"),
        ],
    )
    def test_refuses(self, template: object, message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)) as refused:
            compile_template(template)
        assert "\n" not in str(refused.value)

    @given(text=st.text(alphabet=st.sampled_from('$${}.abtype metadata%"\\é'), max_size=20))
    def test_compiles_or_refuses_any_text(self, text: str) -> None:
        for compiling in (compile_template, compile_header_value):
            self.compile_or_refuse(compiling, text)

    @staticmethod
    def compile_or_refuse(compiling: Callable[[str], object], text: str) -> None:
        try:
            compiled = compiling(text)
        except ValueError:
            assert "$" in text
            return
        if compiling is compile_template:
            json.loads(body(text, event()))
        elif "$" not in text:
            assert compiled == text


class TestHeaderValue:
    @pytest.mark.parametrize(
        ("text", "value"), [("Bearer abc", "Bearer abc"), ("a$$b", "a$b"), ("", ""), ("grün", "grün")]
    )
    def test_plain_text_stays(self, text: str, value: str) -> None:
        assert compile_header_value(text) == value

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("$type", "order.created"),
            ("${tenant}:$event_id", ":evt_1"),
            ("$timestamp", "2021-01-27T16:23:09Z"),
            ("t=$timestamp_seconds 100%\t$$", "t=1611764589 100%\t$"),
            ("$metadata.traceparent", "00-ab-cd-01"),
            ("n=$metadata.n $metadata.missing.", "n=1.10 ."),
            ("$metadata.list", '[1, "%C3%A9"]'),
            ("$metadata.evil", "a%0D%0AX-Admin: 1%00?"),
            ("$metadata.in.shop", "berlin"),
            ("$metadata.missing|none", "none"),
            ("shop=${metadata.in.missing|caf\u00e9}", "shop=caf%C3%A9"),
        ],
    )
    def test_placeholders(self, text: str, value: str) -> None:
        metadata = (
            r'{"traceparent":"00-ab-cd-01","n":1.10,"list":[1, "é"],"evil":"a\r\nX-Admin: 1\u0000\ud800",'
            r'"in":{"shop":"berlin"}}'
        ).encode()
        assert made(text, event(metadata=metadata)) == value

    @given(of=events, members=objects)
    def test_never_holds_a_control_byte(self, of: Event, members: list[tuple[str, bytes]]) -> None:
        of = of._replace(metadata=written([*members, ("key", members[0][1] if members else b"1")]))
        for text in ("$type", "$tenant", "é\r\n$tenant $type $metadata.key", "$metadata.key"):
            assert re.fullmatch(r"[\t\x20-\x7e]*", made(text, of))

    @given(of=events)
    def test_is_readable_again(self, of: Event) -> None:
        assert unquote(made("$type", of._replace(type=of.type.replace("%", "")))) == of.type.replace("%", "")

    @pytest.mark.parametrize("name", ["data", "metadata", "event"])
    @pytest.mark.parametrize("form", ["${}", "x ${}", "${{{}}}"])
    def test_refuses_whole_values(self, name: str, form: str) -> None:
        message = f"${name} is a whole JSON value and cannot be part of a header value"
        with pytest.raises(ValueError, match=re.escape(message)):
            compile_header_value(form.format(name))

    @pytest.mark.parametrize("text", ["Bearer planted$planted", "planted $", "planted${", "${planted}"])
    def test_refusal_does_not_quote_a_secret(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"^a \$ of the header value starts no placeholder; known are") as refused:
            compile_header_value(text)
        assert "planted" not in str(refused.value)
        assert refused.value.__suppress_context__

    def test_types(self) -> None:
        value: str | HeaderValue = compile_header_value("$type")
        assert not isinstance(value, str)
