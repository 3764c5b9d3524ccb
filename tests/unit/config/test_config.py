"""What the configuration accepts, and the sentence for each mistake."""

import base64
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import FrozenInstanceError
from datetime import date, datetime, time, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.certificates import self_signed
from webhookd.config.config import Config, build
from webhookd.config.named import Auth, EndpointTable, Hmac, Tls
from webhookd.config.positions import lines
from webhookd.config.schema import SECTIONS, Retry
from webhookd.errors import ConfigError
from webhookd.message.formats import FORMATS
from webhookd.message.sealing import SealingKey
from webhookd.message.signing import SCHEMES, parse_secret
from webhookd.model import Condition, Egress, Grant, Proxy
from webhookd.units import duration, size, written_duration, written_size

SECRET = "whsec_" + base64.b64encode(b"planted-secret-of-test-config").decode()
OTHER = "whsec_" + base64.b64encode(b"another-planted-secret-of-test").decode()
ORDERS: dict[str, Any] = {"url": "https://hooks.example.com/x?token=planted", "events": ["order.*"], "secret": SECRET}
AUTH = {"token_url": "https://login.example.com/token", "client_id": "webhookd", "client_secret": "fake"}


def _hmac(headers: dict[str, str] | None = None, **said: str) -> dict[str, Any]:
    """What an endpoint with such an HMAC says."""
    table = {"signature": "hmac", "secret": "a-fake-secret", "hmac": {"header": "x-a", **said}}
    return table if headers is None else {**table, "headers": headers}


def no_file(path: str, origin: str) -> str:
    raise ValueError("the file it names cannot be read")


def made(document: Mapping[str, Any], *others: tuple[str, Any], environ: Mapping[str, str] | None = None) -> Config:
    return build(document, others, environ or {}, no_file)


def mistakes(
    document: Mapping[str, Any], *others: tuple[str, Any], environ: Mapping[str, str] | None = None
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        made(document, *others, environ=environ)
    text = str(caught.value)
    assert "planted" not in text
    assert SECRET not in text
    return caught.value.mistakes


def orders(**changes: Any) -> dict[str, Any]:
    return {"endpoint": {"orders": {key: v for key, v in {**ORDERS, **changes}.items() if v is not None}}}


def test_an_endpoint_is_resolved() -> None:
    document = {
        **orders(
            tenant="acme",
            filter={"region": "eu", "vip": True, "level": [1, 2.5], "data": {"a.b": {"gte": 1}, "c": ["x"]}},
            retry={"give_up_after": "1d"},
            headers={"Authorization": "Bearer planted", "X-Event": "$type", "content-type": "application/json"},
            timeout="5s",
        ),
        "delivery": {"max_in_flight_per_endpoint": 3},
        "retry": {"schedule": ["5s", "5m"]},
    }
    config = made(document)
    (endpoint,) = config.endpoints
    assert (endpoint.id, endpoint.label, endpoint.active) == (0, "acme/orders", True)
    assert endpoint.format is FORMATS["standard"]
    assert endpoint.signature is SCHEMES["standard"]
    assert endpoint.secrets == (parse_secret(SECRET),)
    assert (endpoint.timeout, endpoint.max_in_flight) == (5.0, 3)
    assert (endpoint.retry.schedule, endpoint.retry.give_up_after) == ((5.0, 300.0), 86400.0)
    assert endpoint.filter == {"region": ("eu",), "vip": ("true",), "level": ("1", "2.5")}
    assert endpoint.data_filter == (Condition("a.b", None, None, (("gte", 1),)), Condition("c", ("x",)))
    assert [name for name, _ in endpoint.headers] == ["Authorization", "X-Event", "content-type"]
    assert callable(endpoint.headers[1][1])
    spec = config.specs["acme", "orders"]
    assert json.loads(json.dumps(spec)) == spec
    assert spec["headers"] == ["Authorization", "X-Event", "content-type"]
    assert spec["data_filter"] == {"a.b": {"gte": 1}, "c": {"in": ["x"]}}
    assert SECRET not in json.dumps(spec)
    assert "Bearer" not in json.dumps(spec)
    with pytest.raises(FrozenInstanceError):
        config.config_hash = ""  # type: ignore[misc]  # that it cannot be assigned is what is tested


def test_names_of_the_api_are_refused() -> None:
    (mistake,) = mistakes({"endpoint": {"ep_mine": ORDERS}})
    assert "names that begin with ep_ are those of the API; choose another" in mistake


def test_defaults_are_those_of_the_documentation() -> None:
    config = made({})
    assert (config.delivery.timeout, config.delivery.max_in_flight, config.delivery.max_payload) == (20.0, 500, 1048576)
    assert (config.retry.first, config.retry.factor, config.retry.give_up_after) == (5.0, 3.0, 259200.0)
    assert (config.egress.allow_http, config.egress.allow_networks) == (False, ())
    assert config.endpoints == ()


@pytest.mark.parametrize("key", ["dsn", "direct_dsn"])
def test_a_dsn_may_be_written_as_the_default_that_is_documented(key: str) -> None:
    assert made({"database": {key: ""}}) == made({})


def test_a_proxy_and_who_we_are_for_it() -> None:
    elsewhere = {
        "proxy": "http://proxy.internal:3128/",
        "proxy_authorization": {"env": "WEBHOOKD_EGRESS__P", "user": "w"},
    }
    config = made({"egress": elsewhere}, environ={"WEBHOOKD_EGRESS__P": "planted"})
    assert config.egress == Egress(proxy=Proxy("proxy.internal", 3128, "Basic dzpwbGFudGVk"))
    assert "dzpwbGFudGVk" not in repr(config)
    text = {"proxy": "http://[::1]:1", "proxy_authorization": "Bearer planted"}
    assert made({"egress": text}).egress.proxy == Proxy("::1", 1, "Bearer planted")
    assert made({"egress": {"proxy": "http://a:1"}}).config_hash != made({}).config_hash


def test_a_token_and_who_we_are_for_its_server() -> None:
    secret = {"env": "WEBHOOKD_CLIENT__SECRET"}  # a variable of any name may hold it
    environ = {"WEBHOOKD_CLIENT__SECRET": "planted"}
    config = made(orders(auth={**AUTH, "client_secret": secret, "scope": "a b"}), environ=environ)
    url = "https://login.example.com/token"
    assert config.endpoints[0].grant == Grant(url, "webhookd", "planted", "a b")
    assert "planted" not in repr(config)
    in_body = made(orders(auth={**AUTH, "client_authentication": "post"})).endpoints[0].grant
    assert in_body == Grant(url, "webhookd", "fake", in_body=True)
    assert "planted" not in json.dumps(config.specs["", "orders"])
    other = made(orders(auth={**AUTH, "client_secret": "other"})).config_hash
    assert other != made(orders(auth=AUTH)).config_hash


def test_a_password_that_is_no_text_is_not_shown() -> None:
    proof = {"env": "P", "user": "w"}
    with pytest.raises(ConfigError) as refused:
        made({"egress": {"proxy": "http://p:1", "proxy_authorization": proof}}, environ={"P": "plan\udcffted"})
    (mistake,) = refused.value.mistakes
    assert mistake == "webhookd.toml: [egress] proxy_authorization: $P: wants UTF-8, which what was found is not"


@pytest.mark.parametrize("host", ["0x7f.1", "2130706433", "127.1", "a.localhost", "localhost.", "127.0.0.1."])
def test_behind_a_proxy_an_address_in_disguise_is_refused_when_it_is_read(host: str) -> None:
    egress = {"proxy": "http://proxy:3128", "allow_http": True}
    (mistake,) = mistakes({**orders(url=f"https://{host}/"), "egress": egress})
    assert mistake.startswith("webhookd.toml: [endpoint.orders] url: ")
    disguised = "a host that ends in a number is an address in disguise; write the address itself"
    assert (disguised in mistake) == (host in ("0x7f.1", "2130706433", "127.1"))


def test_the_keys_that_seal() -> None:
    key = base64.b64encode(b"k" * 32).decode()
    environ = {"KEY": key, "OTHER": "planted"}
    config = made({"encryption": {"keys": [{"id": "a", "env": "KEY"}]}}, environ=environ)
    assert config.encryption.keys == (SealingKey("a", b"k" * 32),)
    in_a_variable = {**environ, "WEBHOOKD_ENCRYPTION__KEYS": '[{ id = "a", env = "KEY" }]'}
    assert made({}, environ=in_a_variable).encryption.keys == config.encryption.keys
    assert "kkkk" not in repr(config)
    with pytest.raises(ConfigError, match=r"keys item 1: \$OTHER: is no key; make one with `webhookd secret key`$"):
        made({"encryption": {"keys": [{"id": "a", "env": "OTHER"}]}}, environ=environ)
    with pytest.raises(ConfigError, match=r'keys: "a" is the id of two keys; rename one of them$'):
        made({"encryption": {"keys": [{"id": "a", "env": "KEY"}] * 2}}, environ=environ)


def test_repr_shows_no_secret() -> None:
    dsn = "postgresql://app:planted@db/app"
    document = {**orders(headers={"authorization": "Bearer planted"}), "database": {"dsn": dsn, "direct_dsn": dsn}}
    shown = repr(made(document))
    assert "planted" not in shown
    assert SECRET not in shown
    assert parse_secret(SECRET).raw.decode() not in shown


def test_each_way_to_give_secrets() -> None:
    assert made(orders(secret=None, secrets=[SECRET, OTHER])).endpoints[0].secrets == (
        parse_secret(SECRET),
        parse_secret(OTHER),
    )
    environ = {"WEBHOOKD_ORDERS__SECRET": SECRET}  # a variable of any name may hold a secret
    from_environ = made(orders(secret=None, secret_env="WEBHOOKD_ORDERS__SECRET"), environ=environ)
    assert from_environ.endpoints[0].secrets == (parse_secret(SECRET),)
    from_file = build(orders(secret=None, secret_file="s"), [], {}, lambda path, origin: {"s": SECRET}[path])
    assert from_file.endpoints[0].secrets == (parse_secret(SECRET),)
    assert made(orders(secret=None, signature="none")).endpoints[0].secrets == ()


def test_a_systemd_credential() -> None:
    files = {"/run/credentials/webhookd/orders": SECRET + "\n"}

    def read(path: str, origin: str) -> str:
        if path not in files:
            raise ValueError("the file it names cannot be read: No such file or directory")
        return files[path]

    def build_with(name: object, **environ: str) -> Config:
        return build(orders(secret=None, secret_credential=name), [], environ, read)

    there = "/run/credentials/webhookd"
    assert build_with("orders", CREDENTIALS_DIRECTORY=there).endpoints[0].secrets == (parse_secret(SECRET),)
    place = r"^webhookd\.toml: \[endpoint\.orders\] secret_credential: "
    with pytest.raises(ConfigError, match=place + r"\$CREDENTIALS_DIRECTORY is not set; start webhookd by a systemd"):
        build_with("orders")
    with pytest.raises(
        ConfigError, match=place + r"the file it names cannot be read: .*; the unit needs LoadCredential="
    ):
        build_with("bills", CREDENTIALS_DIRECTORY=there)
    for name in ("../orders", "..", "", 5):
        with pytest.raises(ConfigError, match=place + "wants the name of a systemd credential, without its folder"):
            build_with(name, CREDENTIALS_DIRECTORY=there)


@pytest.mark.parametrize("around", [" {} ", "\t{}\r\n", "\n {}\n\n"])
def test_blanks_around_a_secret_count_nowhere(around: str) -> None:
    """Wherever it is: a trailing one in a file was refused where that of a variable was not."""
    secret, token = around.format(SECRET), around.format("fake-token")
    texts = {"/creds/s": secret, "s": secret, "/creds/t": token, "t": token}
    environ = {"CREDENTIALS_DIRECTORY": "/creds", "S": secret, "T": token}
    ways: list[dict[str, Any]] = [
        {way: found} for way, found in (("secret_file", "s"), ("secret_env", "S"), ("secret_credential", "s"))
    ] + [{"secrets": [{way: found}]} for way, found in (("file", "s"), ("env", "S"), ("credential", "s"))]
    for way in ways:
        config = build(orders(secret=None, **way), [], environ, lambda path, _: texts[path])
        assert config.endpoints[0].secrets == (parse_secret(SECRET),), way
    for source in ({"file": "t"}, {"env": "T"}, {"credential": "t"}):
        for beside, header in (({}, "fake-token"), ({"prefix": "Bearer "}, "Bearer fake-token")):
            given = orders(headers={"x-key": {**source, **beside}})
            config = build(given, [], environ, lambda path, _: texts[path])
            assert config.endpoints[0].headers == (("x-key", header),), source
        proxied = {**orders(), "egress": {"proxy": "http://proxy:1", "proxy_authorization": {**source, "user": "me"}}}
        found = build(proxied, [], environ, lambda path, _: texts[path]).egress.proxy
        assert found is not None
        assert found.authorization == "Basic " + base64.b64encode(b"me:fake-token").decode()


@pytest.mark.parametrize("blank", [" \n", ""])
def test_a_variable_of_blanks_is_not_set(blank: str) -> None:
    (mistake,) = mistakes(orders(secret=None, secret_env="EMPTY"), environ={"EMPTY": blank})
    assert mistake.endswith("secret_env: the environment variable it names is not set")


def test_event_types_are_kept_for_people() -> None:
    table = {"order.status": {"description": "It changed", "example": {"at": date(2026, 1, 31), "amount": [1.5, "x"]}}}
    types = made({"event_types": table}, ("b.toml", {"event_types": {"a": {}}})).event_types
    assert types["order.status"].description == "It changed"
    assert types["order.status"].example == {"at": "2026-01-31", "amount": [1.5, "x"]}
    assert types["a"].example is None
    assert mistakes({"event_types": table}, ("b.toml", {"event_types": table})) == [
        'b.toml: [event_types."order.status"] is also in webhookd.toml; give it once'
    ]


def test_the_hash_leaves_out_what_is_a_hosts_own_business() -> None:
    base = made({}).config_hash
    assert made({"daemon": {"watch": True}}).config_hash == base
    assert made({"daemon": {"environment": "staging"}}).config_hash != base


def test_mistakes_have_the_line_of_their_key_or_of_its_table() -> None:
    text = '[delivery]\ntimeout = 5\n\n[endpoint.orders]\nevents = []\nretry = { frist = "1s" }\nsecret = "planted"\n'
    with pytest.raises(ConfigError) as caught:
        build(tomllib.loads(text), [], {"WEBHOOKD_LOG__LEVEL": "x"}, no_file, "a.toml", lambda file: lines(text))
    assert [mistake.partition(": ")[0] for mistake in caught.value.mistakes] == [
        "a.toml:2",
        "WEBHOOKD_LOG__LEVEL",
        "a.toml:4",  # there is no url
        "a.toml:5",
        "a.toml:7",
        "a.toml:6",
    ]


def test_files_without_a_mistake_are_not_searched_for_lines() -> None:
    def searched(file: str) -> dict[tuple[str, ...], int]:
        asked.append(file)
        return {}

    asked: list[str] = []
    with pytest.raises(ConfigError):
        build({}, [("b.toml", {"x": 1, "y": 2}), ("c.toml", orders())], {}, no_file, lines=searched)
    assert asked == ["b.toml"]


def test_an_exponential_key_ends_an_inherited_schedule() -> None:
    retry = made({**orders(retry={"first": "1s"}), "retry": {"schedule": ["5s"]}}).endpoints[0].retry
    assert (retry.first, retry.schedule) == (1.0, ())


def test_a_format_of_ones_own() -> None:
    config = made({**orders(format="mine"), "formats": {"mine": {"body": {"kind": "$type"}}}})
    assert config.endpoints[0].format not in FORMATS.values()
    assert config.specs["", "orders"]["format"] == "mine"


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"delivery": {"timeout": "20 sec"}}, '[delivery] timeout: "20 sec" is no duration; write "20s", "5m" or "3d"'),
        ({"delivery": {"timeout": 20}}, '[delivery] timeout: 20 is no duration; write "20s", "5m" or "3d"'),
        ({"delivery": {"timeout": "6m"}}, '[delivery] timeout: "6m" is out of bounds; write "1ms" to "5m"'),
        ({"delivery": {"timeot": "6s"}}, "[delivery] timeot: is no key here; did you mean timeout?"),
        (
            {"delivery": {"max_payload": "1 MB"}},
            '[delivery] max_payload: "1 MB" is no size; write "512KiB", "1MiB" or a number of bytes',
        ),
        ({"delivery": {"max_in_flight": 0}}, "[delivery] max_in_flight: must be at least 1"),
        ({"delivery": {"max_in_flight": True}}, "[delivery] max_in_flight: wants a whole number"),
        ({"delivery": {"max_in_flight": "5"}}, "[delivery] max_in_flight: wants a whole number"),
        ({"delivery": {"response_body": "all"}}, '[delivery] response_body: wants "failures" or "none"'),
        ({"delivery": 5}, "[delivery] wants a table"),
        (
            {"delivery": {"source": "a b"}},
            '[delivery] source: "a b" is no CloudEvents source; write a URI such as "https://example.com/shop"',
        ),
        ({"delivry": {}}, '"delivry" is no section; did you mean delivery?'),
        (
            {"daemon": {"environment": "Prod"}},
            "[daemon] environment: \"Prod\" is no name; use 1 to 64 of a-z, 0-9, '_', '.' and '-', "
            "the first a letter or a digit",
        ),
        (
            {"database": {"dsn": "mysql://planted"}},
            '[database] dsn: must begin with "postgresql://", or be words such as host=… dbname=…',
        ),
        (
            {"database": {"dsn": "postgresql:///a", "dsn_file": "f"}},
            "[database] dsn_file: stands beside dsn; give only one of them",
        ),
        ({"retry": {"factor": 0.5}}, "[retry] factor: must be at least 1"),
        ({"retry": {"factor": float("nan")}}, "[retry] factor: wants a finite number"),
        ({"retry": {"jitter": 1.5}}, "[retry] jitter: must be at most 1"),
        ({"retry": {"give_up_after": "31d"}}, '[retry] give_up_after: "31d" is out of bounds; write "1ms" to "30d"'),
        (
            {"retry": {"schedule": ["5s", "x"]}},
            '[retry] schedule item 2: "x" is no duration; write "20s", "5m" or "3d"',
        ),
        ({"retry": {"schedule": "5s"}}, "[retry] schedule: wants a list in [ ]"),
        (
            {"retry": {"schedule": ["5s"], "factor": 2}},
            "[retry] schedule: replaces factor; give only one of them",
        ),
        (
            {"retry": {"first": "7h"}},
            "[retry] first: is longer than max_interval; shorten it or raise max_interval",
        ),
        ({"egress": {"allow_http": "yes"}}, "[egress] allow_http: wants true or false"),
        (
            {"egress": {"allow_networks": ["10.0.0.1/8"]}},
            '[egress] allow_networks item 1: "10.0.0.1/8" is no network; write an address range such as "10.20.0.0/16"',
        ),
        *(
            (
                {"encryption": {"keys": [key]}},
                '[encryption] keys item 1: wants a table such as { id = "2026", credential = "webhookd.key" }, or with'
                " file or env",
            )
            for key in ("planted", {}, {"id": "a"}, {"id": "a", "file": "b", "env": "C"}, {"id": "a", "key": "planted"})
        ),
        (
            {"encryption": {"keys": [{"id": "a", "env": "PLANTED"}]}},
            "[encryption] keys item 1: the environment variable it names is not set",
        ),
        (
            {"encryption": {"keys": [{"id": "A b", "env": "PLANTED"}]}},
            "[encryption] keys item 1: id: \"A b\" is no name; use 1 to 64 of a-z, 0-9, '_', '.' and '-', the first a"
            " letter or a digit",
        ),
        ({"log": {"level": "loud"}}, '[log] level: wants "debug", "info", "warning" or "error"'),
        ({"endpoints": {"directory": ""}}, "[endpoints] directory: must not be empty"),
        ({"endpoint": 1}, "endpoint wants tables; write [endpoint.NAME]"),
        ({"endpoint": {"a": 1}}, "[endpoint] a: wants a table; write [endpoint.NAME]"),
        (
            {"endpoint": {"A b": {}}},
            "[endpoint] \"A b\" is no name; use 1 to 64 of a-z, 0-9, '_', '.' and '-', the first a letter or a digit",
        ),
        ({"formats": {"raw": {"body": {}}}}, "[formats.raw] is built in; choose another name"),
        ({"formats": {"mine": {}}}, "[formats.mine] body: is required"),
        ({"admin": {}}, '"admin" is not there yet in this version of webhookd; remove it'),
        *(
            (
                {"egress": {"proxy": proxy}},
                '[egress] proxy: wants "http://HOST:PORT" and nothing else; a user and a password belong into'
                " proxy_authorization",
            )
            for proxy in (
                "proxy:3128",
                "https://proxy:3128",
                "http://u:planted@proxy:3128",
                "http://proxy",
                "http://proxy:0",
                "http://proxy:65536",
                "http://proxy:1/x",
                "http://proxy:1\n",
                "http://[10.0.0.5]:3128",
                "http://[:::]:3128",
                "http://pro..xy:3128",
                f"http://{'a' * 64}:3128",
            )
        ),
        (
            {"egress": {"proxy_authorization": "Basic planted"}},
            "[egress] proxy_authorization: goes with proxy; write proxy too, or neither",
        ),
        (
            {"egress": {"proxy": "http://p:1", "proxy_authorization": "planted\n"}},
            '[egress] proxy_authorization: wants a text such as "Basic …", or a table such as'
            ' { file = "password", user = "NAME" }',
        ),
        (
            {"egress": {"proxy": "http://p:1", "proxy_authorization": {"env": "PLANTED"}}},
            "[egress] proxy_authorization: the environment variable it names is not set",
        ),
        (
            {"event_types": {"order": {"status": {}}}},
            '[event_types.order] status: a name with dots wants quotes; write [event_types."order.status"]',
        ),
        (
            {"event_types": {"order.*": {}}},
            '[event_types] "order.*" is no event type; write words with dots between them, such as "order.created"',
        ),
        (
            {"event_types": {"a.b": {"example": [float("nan")]}}},
            '[event_types."a.b"] example: holds inf or nan, which JSON does not have',
        ),
    ],
)
def test_a_mistake_in_a_section(document: dict[str, Any], expected: str) -> None:
    assert mistakes(document) == [f"webhookd.toml: {expected}"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"url": None}, "url: is required"),
        ({"url": "https://a b/?planted"}, "url: the URL must be printable ASCII without spaces"),
        ({"url": 5}, "url: wants a text in quotes"),
        ({"events": []}, "events: must not be empty"),
        ({"events": "order.*"}, "events: wants a list in [ ]"),
        (
            {"events": ["a", "*.b"]},
            'events item 2: "*.b" is no event pattern; write "order.created", "order.*" or "*"',
        ),
        ({"secert": "planted"}, "secert: is no key here; did you mean secret?"),
        (
            {"secret": None},
            "secret: is required, as secret, secrets, secret_file, secret_env or secret_credential, "
            'unless signature = "none"',
        ),
        ({"secrets": [OTHER]}, "secrets: stands beside secret; give only one of them"),
        ({"signature": "none"}, 'secret: signature = "none" uses no secret; remove one or the other'),
        ({"secret": "planted"}, "secret: a secret starts with whsec_ (HMAC-SHA256) or whsk_ (ed25519)"),
        ({"secret": 5}, "secret: wants a text in quotes"),
        ({"secret": None, "secrets": [SECRET, "whsec_planted?"]}, "secrets item 2: what follows whsec_ is not base64"),
        ({"secret": None, "secret_env": SECRET}, "secret_env: the environment variable it names is not set"),
        ({"secret": None, "secret_file": SECRET}, "secret_file: the file it names cannot be read"),
        ({"signature": "hmac256"}, 'signature: "hmac256" is no signature; write "github" or "hmac" or "none" or'),
        (
            {"signature": "standard-ed25519"},
            "secret: a whsec_ secret makes v1 signatures; v1a wants a whsk_ key, see `webhookd secret new`",
        ),
        (
            {"signature": "github", "secret": "planted"},
            "secret: a secret of this signature has 8 to 256 characters, of printable ASCII without spaces",
        ),
        (
            {"signature": "github", "secret": None, "secrets": ["first-fake", "second-fake"]},
            'secrets: has room for one with signature = "github"; give the others an until',
        ),
        (
            {"signature": "hmac", "secret": "a-fake-secret"},
            'hmac: goes with signature = "hmac"; write hmac = { header = "x-signature" }, or neither',
        ),
        ({"hmac": {"header": "x-signature"}}, 'hmac: goes with signature = "hmac"; write'),
        (
            {"signature": "hmac", "secret": "a-fake-secret", "hmac": {"header": "host"}},
            "hmac.header: is set by webhookd itself or changes how the body is read; remove it",
        ),
        (
            {"signature": "hmac", "secret": "a-fake-secret", "hmac": {"header": "x-a", "hash": "md5"}},
            'hmac.hash: wants "sha256", "sha512" or "sha1"',
        ),
        ({"signature": "hmac", "secret": "a-fake-secret", "hmac": {"header": "x-a", "prefix": "é"}}, "hmac.prefix: "),
        (_hmac(signed="$bodies"), "hmac.signed: $bodies is no placeholder there; known are $body, $id, $timestamp and"),
        (_hmac(signed=""), "hmac.signed: "),
        (_hmac(signed="$header.x-time"), "hmac.signed: has $header.x-time, which is not sent; add it to headers"),
        (_hmac(timestamp="iso"), "hmac.timestamp: goes with timestamp_header, so that its receiver knows it"),
        (_hmac(timestamp="unix"), 'hmac.timestamp: wants "seconds", "iso" or "http"'),
        (_hmac(timestamp_header="X-A"), "hmac.timestamp_header: is the header of the signature; name another"),
        (_hmac(timestamp_header="content-type"), "hmac.timestamp_header: has something else in it; name another"),
        (
            {**_hmac(header="authorization"), "auth": AUTH},
            "hmac.header: has something else in it; name another",
        ),
        (_hmac(timestamp_header="host"), "hmac.timestamp_header: is set by webhookd itself or changes"),
        (_hmac(headers={"X-A": "1"}), "hmac.header: stands in headers, too; remove it there"),
        (
            _hmac(headers={"date": "1"}, timestamp_header="Date"),
            "hmac.timestamp_header: stands in headers, too; remove it there",
        ),
        ({"format": "xml"}, 'format: "xml" is no format; write'),
        ({"filter": {"data": {"a": {"ge": 1}}}}, 'filter.data: "a" has "ge" that means nothing there; known are gt'),
        ({"filter": {"data": {}}}, "filter.data: wants at least one path"),
        ({"filter": {"region": {"in": ["eu"]}}}, "filter.region: wants a text, a number, true or false, or a list of"),
        ({"headers": {"a b": "x"}}, "headers.a b: is no header name; use letters, digits and '-'"),
        (
            {"headers": {"x-key": "planted\r\nx: y"}},
            "headers.x-key: holds a control character; write one line of plain",
        ),
        ({"headers": {"x-key": "$planted"}}, "headers.x-key: "),
        ({"headers": {"x-key": 5}}, "headers.x-key: wants a text in quotes, or a table such as"),
        ({"headers": {"x-key": {}}}, "headers.x-key: wants one of file, env and credential, and prefix"),
        ({"headers": {"x-key": {"file": "a", "env": "B"}}}, "headers.x-key: wants one of file, env and credential"),
        ({"headers": {"x-key": {"file": "a", "perfix": "x"}}}, "headers.x-key: wants one of file, env and credential"),
        ({"headers": {"x-key": {"file": "a", "prefix": "x", "user": "y"}}}, "headers.x-key: wants one of file, env"),
        ({"headers": {"x-key": {"file": "planted"}}}, "headers.x-key: the file it names cannot be read"),
        ({"headers": {"x-key": {"env": "planted"}}}, "headers.x-key: the environment variable it names is not set"),
        ({"headers": {"x-key": {"credential": "key"}}}, "headers.x-key: $CREDENTIALS_DIRECTORY is not set"),
        ({"headers": {"X-Key": "a", "x-key": "b"}}, 'headers: "X-Key" and "x-key" are one header; give it once'),
        ({"rate_limit": 5}, 'rate_limit: 5 is no rate; write "50/s", "600/m" or "1000/h"'),
        ({"rate_limit": "5 /s"}, 'rate_limit: "5 /s" is no rate; write "50/s", "600/m" or "1000/h"'),
        ({"rate_limit": "0/s"}, 'rate_limit: "0/s" is out of bounds; write "1/d" to "10000/s"'),
        ({"rate_limit": "10001/s"}, 'rate_limit: "10001/s" is out of bounds; write "1/d" to "10000/s"'),
        ({"auth": {"client_id": "a", "client_secret": "planted"}}, "auth.token_url: is required"),
        ({"auth": {**AUTH, "token_url": "http://a.example"}}, "auth.token_url: the URL must start with https://"),
        ({"auth": {**AUTH, "token_url": "https://10.0.0.1"}}, "auth.token_url: 10.0.0.1 is in 10.0.0.0/8"),
        ({"auth": {**AUTH, "client_id": "\n"}}, "auth.client_id: wants 1 to 1024 printable ASCII characters"),
        ({"auth": {**AUTH, "client_secret": ""}}, "auth.client_secret: wants 1 to 1024 printable ASCII characters"),
        ({"auth": {**AUTH, "client_secret": {}}}, "auth.client_secret: wants a text in quotes, or one of file, env"),
        ({"auth": {**AUTH, "client_secret": {"env": "X", "user": "y"}}}, "auth.client_secret: wants a text in quotes"),
        ({"auth": {**AUTH, "client_secret": {"env": "PLANTED"}}}, "auth.client_secret: the environment variable it"),
        ({"auth": {**AUTH, "client_authentication": "x"}}, 'auth.client_authentication: wants "basic" or "post"'),
        ({"auth": {**AUTH, "scopes": "x"}}, "auth.scopes: is no key here; did you mean scope?"),
        ({"auth": AUTH, "headers": {"Authorization": "x"}}, "auth: stands beside headers.authorization; give only one"),
        ({"kind": "poll"}, 'url: means nothing with kind = "poll", which is fetched; remove it'),
        ({"kind": "pull"}, 'kind: wants "push" or "poll"'),
        ({"ordered": "keys"}, 'ordered: wants false, true or "key"'),
        ({"ordered": True, "max_in_flight": 5}, "max_in_flight: is 1 with ordered = true; remove it"),
        ({"ordered": "key", "on_exhausted": "stop"}, 'on_exhausted: wants "skip" or "hold"'),
        ({"on_exhausted": "hold"}, "on_exhausted: goes with ordered; write ordered = true or"),
        ({"timeout": "0s"}, 'timeout: "0s" is out of bounds; write "1ms" to "5m"'),
        ({"max_in_flight": 0}, "max_in_flight: must be at least 1"),
        ({"retry": {"frist": "1s"}}, "retry.frist: is no key here; did you mean first?"),
        ({"retry": {"schedule": ["1s"], "first": "1s"}}, "retry.schedule: replaces first; give only one of them"),
        ({"retry": {"max_interval": "1s"}}, "retry.first: is longer than max_interval"),
        ({"filter": {"region": []}}, "filter.region: wants at least one value, as nothing would pass"),
        ({"filter": {"region": {}}}, "filter.region: wants a text, a number, true or false, or a list of them"),
        ({"description": "a\x00"}, "description: holds a NUL character, which Postgres cannot keep; remove it"),
        ({"tenant": "a\nb"}, "tenant: is no tenant; write at most 255 characters without control characters"),
    ],
)
def test_a_mistake_in_an_endpoint(changes: dict[str, Any], expected: str) -> None:
    (mistake,) = mistakes(orders(**changes))
    assert mistake.startswith(f"webhookd.toml: [endpoint.orders] {expected}")


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "TE",
        "trailer",
        "cookie",
        "content-encoding",
        "accept-encoding",
        "webhook-id",
    ],
)
def test_a_reserved_header(name: str) -> None:
    (mistake,) = mistakes(orders(headers={name: "x"}))
    assert mistake.startswith(f"webhookd.toml: [endpoint.orders] headers.{name}: is set by webhookd itself")


@pytest.mark.parametrize(
    ("url", "lines"),
    [
        ("http://hooks.example.com/?planted", ["allow_http = true"]),
        ("http://127.0.0.1:9/?planted", ["allow_http = true", 'allow_networks = ["127.0.0.0/8"]']),
        ("http://localhost/", ["allow_http = true", 'allow_networks = ["127.0.0.0/8", "::1/128"]']),
        ("https://10.1.2.3/", ['allow_networks = ["10.1.2.3/32"]']),
        ("https://[fd00::1]/", ['allow_networks = ["fd00::1/128"]']),
        ("https://[::ffff:10.1.2.3]/", ['allow_networks = ["10.1.2.3/32"]']),
    ],
)
def test_a_refused_url_says_which_lines_allow_it(url: str, lines: list[str]) -> None:
    (mistake,) = mistakes(orders(url=url))
    printed = mistake.split("\n")
    assert printed[1:] == ["[egress]", *lines]
    assert made({**orders(url=url), **tomllib.loads("\n".join(printed[1:]))}).endpoints[0].url == url


def test_a_wrong_egress_section_is_told_once() -> None:
    assert len(mistakes({**orders(url="http://10.0.0.1/"), "egress": {"allow_htp": True}})) == 1


def test_all_mistakes_are_told_at_once() -> None:
    document = {
        **orders(url="http://a.example/", timeout="x", secret="planted"),
        "delivery": {"timeout": "x", "max_in_flight": 0},
        "log": {"level": "x"},
        "nonsense": {},
    }
    other: tuple[str, Any] = ("b.toml", {"endpoint": {"bills": {}}, "delivery": {}, "endpoints": {}})
    found = mistakes(document, other, environ={"WEBHOOKD_DELIVERY__TIMOUT": "5s"})
    assert [mistake.split("\n")[0].split(": ")[0] for mistake in found].count("b.toml") == 5
    assert len(found) == 1 + 3 + 1 + 3 + 5
    assert "b.toml: [endpoints] belongs into the main file; an endpoint is [endpoint.NAME]" in found


def test_a_name_is_one_endpoint_in_a_tenant() -> None:
    other = orders(tenant="acme")
    assert len(made(orders(), ("a.toml", other)).endpoints) == 2
    assert mistakes({}, ("a.toml", other), ("b.toml", other)) == [
        'b.toml: [endpoint.orders] of tenant "acme" is also in a.toml; rename one of them'
    ]
    assert mistakes(orders(), ("b.toml", orders())) == [
        "b.toml: [endpoint.orders] is also in webhookd.toml; rename one of them"
    ]


def test_no_mistake_hides_another_until_it_is_mended() -> None:
    wrong = {"timeout": "a while"}
    found = mistakes(orders(**wrong), ("b.toml", orders()))
    assert "b.toml: [endpoint.orders] is also in webhookd.toml; rename one of them" in found
    assert len(found) == 2
    for beside, sentence in (
        ({"retry": {"first": "2d"}}, "retry.first: is longer than max_interval; shorten it or raise max_interval"),
        ({"retry": {"give_up_after": "10d"}}, '[retention] events: must be at least "11d"'),
        ({"tls": {"key_file": "client.key"}}, "tls.key_file: wants certificate_file beside it"),
        ({"auth": {}, "headers": {"authorization": "x"}}, "auth: stands beside headers.authorization"),
    ):
        assert [each for each in mistakes(orders(**wrong, **beside)) if sentence in each], sentence
    for section, keys, sentence in (
        ("database", {"dsn": "postgresql:///a", "dsn_file": "b"}, "dsn_file: stands beside dsn"),
        ("egress", {"proxy_authorization": "Basic cGxhbjp0ZWQ="}, "proxy_authorization: goes with proxy"),
    ):
        table = {**orders(), section: {**keys, "nonsense": 1}}
        assert [each for each in mistakes(table) if sentence in each], sentence


def test_a_format_is_given_once() -> None:
    table: dict[str, Any] = {"formats": {"mine": {"body": {}}}}
    assert mistakes(table, ("b.toml", table)) == ["b.toml: [formats.mine] is also in webhookd.toml; give it once"]


def test_the_environment_wins() -> None:
    environ = {
        "WEBHOOKD_DELIVERY__TIMEOUT": "5s",
        "WEBHOOKD_DELIVERY__MAX_IN_FLIGHT": "7",
        "WEBHOOKD_DELIVERY__MAX_PAYLOAD": "2048",
        "WEBHOOKD_RETRY__FACTOR": "1.5",
        "WEBHOOKD_EGRESS__ALLOW_HTTP": "true",
        "WEBHOOKD_EGRESS__ALLOW_NETWORKS": "10.0.0.0/8, ::1/128",
        "WEBHOOKD_DSN": "postgresql://planted@/app",
        "WEBHOOKD_CONFIG": "ignored here",
    }
    config = made({"delivery": {"timeout": "9s"}, "database": {"dsn_file": "f"}}, environ=environ)
    assert (config.delivery.timeout, config.delivery.max_in_flight, config.delivery.max_payload) == (5.0, 7, 2048)
    assert config.retry.factor == 1.5
    assert config.egress.allow_http
    assert [str(network) for network in config.egress.allow_networks] == ["10.0.0.0/8", "::1/128"]
    assert (config.database.dsn.get_secret_value(), config.database.dsn_file) == ("postgresql://planted@/app", "")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (
            {"WEBHOOKD_DELIVERY__TIMOUT": "5s"},
            "WEBHOOKD_DELIVERY__TIMOUT: is no setting; did you mean WEBHOOKD_DELIVERY__TIMEOUT?",
        ),
        (
            {"WEBHOOKD_DELIVERY__TIMEOUT": "5"},
            'WEBHOOKD_DELIVERY__TIMEOUT: 5 is no duration; write "20s", "5m" or "3d"',
        ),
        ({"WEBHOOKD_DELIVERY__MAX_IN_FLIGHT": "many"}, "WEBHOOKD_DELIVERY__MAX_IN_FLIGHT: wants a whole number"),
        (
            {"WEBHOOKD_DSN": "postgresql:///a", "WEBHOOKD_DATABASE__DSN": "postgresql:///b"},
            "WEBHOOKD_DATABASE__DSN and WEBHOOKD_DSN: set only one of them",
        ),
        (
            {"WEBHOOKD_ADMIN__LISTEN": "x"},
            "WEBHOOKD_ADMIN__LISTEN: is not there yet in this version of webhookd; remove it",
        ),
        ({"WEBHOOKD_DAEMON__WATCH": "yes"}, "WEBHOOKD_DAEMON__WATCH: wants true or false"),
        (
            {"WEBHOOKD_DSN": "planted"},
            'WEBHOOKD_DSN: must begin with "postgresql://", or be words such as host=… dbname=…',
        ),
        ({"WEBHOOKD_DSN": ""}, "WEBHOOKD_DSN: is empty; write postgresql://… into it, or unset it"),
        (
            {"WEBHOOKD_DATABASE__DIRECT_DSN": " "},
            "WEBHOOKD_DATABASE__DIRECT_DSN: is empty; write postgresql://… or leave it out",
        ),
        (
            {"WEBHOOKD_RETRY__SCHEDULE": "5s,x"},
            'WEBHOOKD_RETRY__SCHEDULE item 2: "x" is no duration; write "20s", "5m" or "3d"',
        ),
    ],
)
def test_a_mistake_in_the_environment(environ: dict[str, str], expected: str) -> None:
    assert mistakes({}, environ=environ) == [expected]


def test_the_hash_follows_what_decides_about_deliveries() -> None:
    base = made(orders(headers={"x-key": "a"})).config_hash
    assert len(base) == 16
    assert made({}, ("b.toml", orders(headers={"x-key": "a"}))).config_hash == base  # wherever it is written
    assert made({**orders(headers={"x-key": "a"}), "log": {"level": "debug"}}).config_hash == base
    changed = [
        orders(headers={"x-key": "b"}),
        orders(headers={"x-key": "a"}, secret=OTHER),
        orders(headers={"x-key": "a"}, timeout="1s"),
        {**orders(headers={"x-key": "a"}), "formats": {"mine": {"body": {}}}},
    ]
    assert len({base, *(made(document).config_hash for document in changed)}) == 5


@given(st.integers(0, 10**9), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600), ("d", 86400)]))
def test_durations_round_trip(number: int, unit: tuple[str, float]) -> None:
    assert round(duration(f"{number}{unit[0]}") / unit[1]) == number
    assert duration(written_duration(duration(f"{number}{unit[0]}"))) == duration(f"{number}{unit[0]}")


@given(st.integers(0, 10**12), st.sampled_from([("B", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30)]))
def test_sizes_round_trip(number: int, unit: tuple[str, int]) -> None:
    assert size(f"{number}{unit[0]}") >> unit[1] == number
    assert size(number) == size(str(number)) == size(written_size(number)) == number


@given(st.one_of(st.text(), st.floats(), st.none(), st.booleans(), st.lists(st.integers())))
def test_anything_else_is_refused_with_one_line(value: object) -> None:
    for parse in (duration, size):
        try:
            found: object = parse(value)
        except ValueError as error:
            found = str(error)
        assert isinstance(found, (int, float)) or (isinstance(found, str) and len(found.splitlines()) == 1)


TOKENS = {
    "/run/keys/api.key": "fake-key",
    "/run/keys/password": "fa:ke",
    "/creds/token": "fake-token",
    "bad": "a\nb",
    "empty": "",
}


@pytest.mark.parametrize(
    ("value", "header"),
    [
        ({"file": "/run/keys/api.key"}, "fake-key"),
        ({"file": "/run/keys/api.key", "prefix": "Bearer "}, "Bearer fake-key"),
        ({"env": "API_KEY", "prefix": "Token $x "}, "Token $x $fake-of-environment"),
        ({"credential": "token"}, "fake-token"),
        # RFC 7617, section 2: a password may have a colon
        ({"file": "/run/keys/password", "user": "acme"}, "Basic " + base64.b64encode(b"acme:fa:ke").decode()),
    ],
)
def test_a_header_may_have_its_secret_elsewhere(value: dict[str, str], header: str) -> None:
    config = tokens({"authorization": value})
    assert config.endpoints[0].headers == (("authorization", header),)
    spec = json.dumps(config.specs["", "orders"])
    assert "fake" not in spec
    assert '"headers": ["authorization"]' in spec


@pytest.mark.parametrize(
    ("value", "mistake"),
    [
        ({"file": "bad"}, "wants one line of printable ASCII, which what was found is not"),
        ({"file": "empty"}, "wants one line of printable ASCII, which what was found is not"),
        ({"file": "/run/keys/api.key", "user": "ac:me"}, "user must not have a colon (RFC 7617)"),
    ],
)
def test_what_cannot_be_a_header_is_refused(value: dict[str, str], mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tokens({"authorization": value})
    assert caught.value.mistakes == [f"webhookd.toml: [endpoint.orders] headers.authorization: {mistake}"]


def test_a_new_token_in_the_same_file_is_another_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    before = tokens({"x-key": {"file": "/run/keys/api.key"}}).config_hash
    assert tokens({"x-key": {"file": "/run/keys/api.key"}}).config_hash == before
    monkeypatch.setitem(TOKENS, "/run/keys/api.key", "another-fake-key")
    assert tokens({"x-key": {"file": "/run/keys/api.key"}}).config_hash != before


def test_a_variable_of_a_header_is_not_taken_for_a_key_of_the_configuration() -> None:
    tokens({"x-key": {"env": "WEBHOOKD_KEY_OF_MINE"}}, WEBHOOKD_KEY_OF_MINE="fake")


def tokens(headers: dict[str, Any], **environ: str) -> Config:
    environ |= {"API_KEY": " $fake-of-environment ", "CREDENTIALS_DIRECTORY": "/creds"}
    return build(orders(headers=headers), (), environ, lambda path, _: TOKENS[path])


CERTIFICATE, PRIVATE = self_signed()
PEM = {
    "ca.pem": CERTIFICATE,
    "client.pem": CERTIFICATE,
    "client.key": PRIVATE,
    "both.pem": CERTIFICATE + PRIVATE,
    "bad": "fake",
}


def with_tls(**tls: str) -> Config:
    return build(orders(tls=tls), (), {}, lambda path, _: PEM[path])


@pytest.mark.parametrize(
    "tls",
    [
        {"ca_file": "ca.pem"},
        {"certificate_file": "both.pem"},
        {"ca_file": "ca.pem", "certificate_file": "client.pem", "key_file": "client.key"},
    ],
)
def test_tls_of_ones_own(tls: dict[str, str]) -> None:
    config = with_tls(**tls)
    assert config.endpoints[0].tls is not None
    assert config.specs["", "orders"]["tls"] == sorted(tls)
    assert "BEGIN" not in repr(config) + json.dumps(config.specs["", "orders"])
    assert made(orders()).endpoints[0].tls is None


@pytest.mark.parametrize(
    ("tls", "mistake"),
    [
        ({"ca_file": "bad"}, "tls: ca_file holds no certificate in PEM"),
        ({"key_file": "client.key"}, "tls.key_file: wants certificate_file beside it"),
        (
            {"certificate_file": "client.pem"},
            "tls: certificate_file and key_file are not a certificate and its key, unencrypted, in PEM",
        ),
    ],
)
def test_a_mistake_in_tls(tls: dict[str, str], mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_tls(**tls)
    assert caught.value.mistakes == [f"webhookd.toml: [endpoint.orders] {mistake}"]


def test_a_renewed_certificate_is_another_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    before = with_tls(ca_file="ca.pem").config_hash
    assert with_tls(ca_file="ca.pem").config_hash == before
    monkeypatch.setitem(PEM, "ca.pem", self_signed()[0])
    assert with_tls(ca_file="ca.pem").config_hash != before


def with_secrets(*secrets: Any, **changes: Any) -> Config:
    environ = {"OLD": OTHER}
    return build(
        orders(secret=None, secrets=list(secrets), **changes), (), environ, lambda path, _: {"old": OTHER}[path]
    )


@pytest.mark.parametrize("source", [{"secret": OTHER}, {"file": "old"}, {"env": "OLD"}])
@pytest.mark.parametrize(
    ("until", "moment"),
    [
        (date(2027, 1, 31), 1_801_353_600.0),
        (datetime(2027, 1, 31, 2, tzinfo=timezone(timedelta(hours=2))), 1_801_353_600.0),
    ],
)
def test_a_secret_may_end(source: dict[str, str], until: date, moment: float) -> None:
    new, old = with_secrets(SECRET, {**source, "until": until}).endpoints[0].secrets
    assert (new.until, old.until) == (float("inf"), moment)
    assert old.raw == parse_secret(OTHER).raw
    assert with_secrets(SECRET, source).endpoints[0].secrets[1].until == float("inf")


@pytest.mark.parametrize(
    ("secrets", "mistake"),
    [
        ([SECRET, {"secret": OTHER, "until": "2027-01-31"}], "secrets item 2: until wants a date such as 2027-01-31"),
        ([SECRET, {"secret": OTHER, "until": datetime(2027, 1, 1)}], "secrets item 2: until wants a date"),
        ([SECRET, {"secret": OTHER, "untli": 1}], "secrets item 2: wants one of secret, file, env and credential"),
        ([SECRET, {"until": date(2027, 1, 31)}], "secrets item 2: wants one of secret, file, env and"),
        ([SECRET, {"secret": 5}], "secrets item 2: wants a text in quotes"),
        ([{"secret": OTHER, "until": date(2027, 1, 31)}], "secrets: all end; one must have no until"),
    ],
)
def test_a_mistake_in_a_secret_that_ends(secrets: list[Any], mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_secrets(*secrets)
    assert caught.value.mistakes[0].startswith(f"webhookd.toml: [endpoint.orders] {mistake}")
    assert OTHER not in str(caught.value)


def test_one_secret_may_follow_another_where_there_is_room_for_one() -> None:
    old = {"secret": "old-fake-secret", "until": date(2027, 1, 31)}
    keys = with_secrets("new-fake-secret", old, signature="github").endpoints[0].secrets
    assert [key.raw for key in keys] == [b"new-fake-secret", b"old-fake-secret"]


MANY = range(2_000)


@pytest.mark.parametrize(
    ("documents", "count"),
    [
        ([{"daemon": {f"k{n}": 1 for n in MANY}}], 2_000),
        ([{f"s{n}": {} for n in MANY}], 2_000),
        ([orders(auth={**AUTH, **{f"k{n}": 1 for n in MANY}})], 2_000),
        ([{"event_types": {f"s{n}": {"k": 1} for n in MANY}}], 2_000),
        ([{"endpoint": {f"e{n}": {**ORDERS, "k": 1} for n in MANY}}], 2_000),
        ([{"daemon": {"k": 1}}, {"endpoint": {"a": {**ORDERS, **{f"k{n}": 1 for n in MANY}}}, "x": {}}], 2_002),
    ],
    ids=["keys", "sections", "deep", "types", "endpoints", "files"],
)
def test_of_thousands_of_mistakes_the_first_are_told_and_only_these_are_thought_about(
    documents: list[dict[str, Any]], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    thought_about: list[str] = []

    def close(word: str, *_: object) -> list[str]:
        thought_about.append(word)
        return []

    monkeypatch.setattr("webhookd.config.mistakes.difflib.get_close_matches", close)
    first, *others = documents
    found = mistakes(first, *(("others.toml", other) for other in others))
    assert len(found) == 101
    assert len(thought_about) <= 100
    assert found[-1] == f"and {count - 100:,} more mistakes"


def test_one_mistake_more_than_are_told_is_told_as_one() -> None:
    assert len(mistakes({"daemon": {f"k{n}": 1 for n in range(100)}})) == 100
    assert mistakes({"daemon": {f"k{n}": 1 for n in range(101)}})[100:] == ["and 1 more mistake"]


ODD = [
    True, -5, 10**30, 1e400, float("nan"), 0.5, "x", "", [], ["x"], [3], [[1]], [{"a": 1}], {}, {"x": 1},
    {"x": {"y": [1]}}, date(2026, 1, 1), datetime(2026, 1, 1), time(1),
]  # fmt: skip


def odd_documents() -> Iterator[dict[str, Any]]:
    """A value of each kind that TOML has, as each section and each key."""
    for value in ODD:
        for section, model in SECTIONS.items():
            yield {section: value}
            yield from ({section: {key: value}} for key in model.model_fields)
        for key in EndpointTable.model_fields:
            yield {"endpoint": {"a": {**ORDERS, key: value}}}
        for table, inner in (("hmac", Hmac), ("tls", Tls), ("auth", Auth), ("retry", Retry)):
            yield from ({"endpoint": {"a": {**ORDERS, table: {key: value}}}} for key in inner.model_fields)
        for table in ("endpoint", "formats", "event_types"):
            yield from ({table: value}, {table: {"a": value}}, {table: {"a": {"body": value, "description": value}}})


def test_no_mistake_is_in_the_words_of_a_library() -> None:
    told: set[str] = set()
    for document in odd_documents():
        try:
            made(document)
        except ConfigError as error:
            told.update(error.mistakes)
    assert len(told) > 300
    assert [
        each for each in told if re.search(r"Input|error,|pydantic|[Vv]alidat|instance|should be|unable", each)
    ] == []
