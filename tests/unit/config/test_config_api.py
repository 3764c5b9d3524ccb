"""[api]: where it listens, who reaches it, and the tokens of a file."""

import hashlib
from collections.abc import Mapping
from typing import Any

import pytest

from webhookd.config.config import Config, build
from webhookd.errors import ConfigError

FAKE = "a-visibly-fake-token-0"


def made(table: Mapping[str, Any], text: str = "") -> Config:
    return build({"api": dict(table)}, [], {}, lambda path, file: text)


def mistakes(table: Mapping[str, Any], text: str = "") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        made(table, text)
    assert FAKE not in str(caught.value)
    return caught.value.mistakes


@pytest.mark.parametrize(
    "listen",
    ["", "127.0.0.1:8484", "localhost:0", "[::1]:65535", "0.0.0.0:80", "unix:/run/webhookd/api.sock", "systemd"],
)
def test_where_it_may_listen(listen: str) -> None:
    assert made({"listen": listen}).api.listen == listen


@pytest.mark.parametrize(
    "listen",
    ["8484", ":8484", "127.0.0.1", "127.0.0.1:65536", "127.0.0.1:-1", "a b:1", "unix:api.sock", "unix:/" + "x" * 120],
)
def test_where_it_may_not(listen: str) -> None:
    (mistake,) = mistakes({"listen": listen})
    assert mistake.startswith('webhookd.toml: [api] listen: wants "127.0.0.1:8484"')


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("base_path", ["", "/webhooks", "/a/b-c.d_e~f"], ["webhooks", "/", "/a/", "/a b", "/a//b"]),
        ("hosts", [["api.example.com", "[::1]"]], [["https://a"], ["a:1"], [""]]),
        ("cors_origins", [["https://app.example.com", "http://localhost:3000"]], [["*"], ["null"], ["https://a/"]]),
    ],
)
def test_what_a_proxy_and_browsers_are_told(key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        found = getattr(made({key: value}).api, key)
        assert found == (value if isinstance(value, str) else tuple(value))
    for value in bad:
        (mistake,) = mistakes({key: value})
        assert f"[api] {key}" in mistake


def test_tokens_of_a_file() -> None:
    text = f"# who\n\nadmin {FAKE}\nread\t{FAKE}1\n"
    api = made({"tokens_file": "api.tokens"}, text).api
    hashes = {hashlib.sha256(f"{FAKE}{end}".encode()).digest(): role for end, role in (("", "admin"), ("1", "read"))}
    assert dict(api.tokens) == hashes
    assert FAKE not in repr(api)
    assert "tokens_file" not in api.model_dump()


@pytest.mark.parametrize("line", ["admin", f"king {FAKE}", f"portal {FAKE}", "admin short", f"admin {FAKE} more", FAKE])
def test_a_line_that_is_no_role_and_token_is_told_by_its_number(line: str) -> None:
    (mistake,) = mistakes({"tokens_file": "api.tokens"}, f"admin {FAKE}0\n{line}\n")
    assert "[api] tokens_file: " in mistake
    assert "line 2 wants a role and a token: admin, operator, producer, read" in mistake


def test_no_token_is_given_by_default() -> None:
    assert dict(made({}).api.tokens) == {}
    assert made({}).config_hash == made({"listen": "127.0.0.1:1"}).config_hash  # each host's own business
