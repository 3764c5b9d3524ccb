"""[metrics] and [traces]: where they listen, and where spans go."""

from collections.abc import Mapping
from typing import Any

import pytest

from webhookd.config import served
from webhookd.config.config import Config, build
from webhookd.errors import ConfigError


def made(**sections: Mapping[str, Any]) -> Config:
    return build(sections, [], {}, lambda path, file: "")


def mistake(**sections: Mapping[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        made(**sections)
    (only,) = caught.value.mistakes
    return only


@pytest.mark.parametrize("listen", ["", "127.0.0.1:9464", "[::1]:0", "unix:/run/webhookd/metrics.sock"])
def test_where_monitoring_may_ask(listen: str) -> None:
    assert made(metrics={"listen": listen}).metrics.listen == listen


@pytest.mark.parametrize("listen", ["systemd", "9464", "127.0.0.1", "unix:metrics.sock"])
def test_where_it_may_not(listen: str) -> None:
    assert mistake(metrics={"listen": listen}) == (
        'webhookd.toml: [metrics] listen: wants "127.0.0.1:9464" or "unix:/run/webhookd/metrics.sock"'
    )


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost:4318",
        "grpc://127.0.0.1:4317",
        "http://",
        "/v1/traces",
        "http://127.0.0.1:4318",
        "http://a:b@c/v1",
        "http://c/v1?key=x",
    ],
)
def test_a_collector_has_a_url(endpoint: str) -> None:
    assert 'wants the URL of a collector with its path, such as "http://127.0.0.1:4318/v1/traces"' in mistake(
        traces={"endpoint": endpoint}
    )


def test_an_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "find_spec", lambda name: None)
    assert made().traces.endpoint == ""
    assert '`pip install "webhookd[otel]"`' in mistake(traces={"endpoint": "http://127.0.0.1:4318/v1/traces"})


def test_what_monitoring_is_told_decides_about_no_delivery() -> None:
    plain, watched = (
        made(),
        made(metrics={"listen": "127.0.0.1:9464"}, traces={"endpoint": "http://127.0.0.1:4318/v1/traces"}),
    )
    assert plain.config_hash == watched.config_hash
