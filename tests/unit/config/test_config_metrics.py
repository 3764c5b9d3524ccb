"""[metrics]: where it listens."""

from collections.abc import Mapping
from typing import Any

import pytest

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


def test_what_monitoring_is_told_decides_about_no_delivery() -> None:
    plain, watched = (
        made(),
        made(metrics={"listen": "127.0.0.1:9464"}),
    )
    assert plain.config_hash == watched.config_hash
