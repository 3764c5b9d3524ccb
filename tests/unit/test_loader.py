"""Where the configuration is read from, and what is said when it cannot be."""

import base64
from pathlib import Path

import pytest

from webhookd.errors import ConfigError
from webhookd.loader import dsn, find, load
from webhookd.signing import parse_secret

SECRET = "whsec_" + base64.b64encode(b"planted-secret-of-test-loader").decode()
ORDERS = '[endpoint.orders]\nurl = "https://hooks.example.com/"\nevents = ["*"]\n'
WITH_SECRET = f'{ORDERS}secret = "{SECRET}"\n'
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def main(tmp_path: Path) -> Path:
    """A main file beside an endpoints directory with one endpoint."""
    (tmp_path / "endpoints.d").mkdir()
    (tmp_path / "endpoints.d" / "orders.toml").write_text(WITH_SECRET)
    file = tmp_path / "webhookd.toml"
    file.write_text("")
    return file


def mistakes(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert SECRET not in str(caught.value)
    return caught.value.mistakes


def test_find_prefers_the_argument_then_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webhookd.loader._PLACES", (tmp_path / "absent.toml", Path("config/webhookd.toml")))
    assert find(Path("a"), {"WEBHOOKD_CONFIG": "b"}) == Path("a")
    assert find(None, {"WEBHOOKD_CONFIG": "b"}) == Path("b")
    with pytest.raises(ConfigError, match=r'config/webhookd\.toml do not exist; run "webhookd init", or name a file'):
        find(None, {})
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "webhookd.toml").write_text("")
    assert find(None, {}) == Path("config/webhookd.toml")


def test_the_shipped_configuration_loads() -> None:
    config = load(REPOSITORY / "config" / "webhookd.toml", {})
    assert [(endpoint.name, endpoint.active) for endpoint in config.endpoints] == [("example", False)]
    assert config.endpoints[0].secrets[0].raw == b"this-is-a-fake-secret-for-examples"


def test_files_are_read_in_order_and_the_environment_wins(main: Path) -> None:
    (main.parent / "endpoints.d" / "bills.toml").write_text(WITH_SECRET.replace("orders", "bills"))
    (main.parent / "endpoints.d" / "notes.txt").write_text("not read")
    config = load(main, {"WEBHOOKD_DELIVERY__TIMEOUT": "5s"})
    assert [(endpoint.name, endpoint.timeout) for endpoint in config.endpoints] == [("bills", 5.0), ("orders", 5.0)]


def test_the_directory_may_have_another_name(main: Path) -> None:
    (main.parent / "endpoints.d").rename(main.parent / "there")
    assert load(main, {"WEBHOOKD_ENDPOINTS__DIRECTORY": "there"}).endpoints
    main.write_text('[endpoints]\ndirectory = "there"\n')
    assert load(main, {}).endpoints


def test_a_secret_file_lies_beside_the_file_that_names_it(main: Path) -> None:
    directory = main.parent / "endpoints.d"
    (directory / "orders.toml").write_text(ORDERS + 'secret_file = "orders.secret"\n')
    (directory / "orders.secret").write_text(SECRET + "\n")
    assert load(main, {}).endpoints[0].secrets == (parse_secret(SECRET),)
    place = f"{directory / 'orders.toml'}: [endpoint.orders] secret_file: the file it names "
    (directory / "orders.secret").write_text(SECRET * 5000)
    assert mistakes(main) == [f"{place}is larger than 64 KiB; a relative path starts at {directory}"]
    (directory / "orders.secret").unlink()
    assert mistakes(main) == [
        f"{place}cannot be read: No such file or directory; a relative path starts at {directory}"
    ]


def test_no_endpoint_at_all(main: Path) -> None:
    directory = main.parent / "endpoints.d"
    (directory / "orders.toml").unlink()
    hint = f"write [endpoint.NAME] in a file such as {directory / 'orders.toml'}"
    assert mistakes(main) == [f"{directory}: has no endpoint; {hint}"]
    directory.rmdir()
    assert mistakes(main) == [f"{directory}: does not exist, and there is no other endpoint; {hint}"]
    main.write_text(WITH_SECRET)
    assert load(main, {}).endpoints


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[log]\nlevel = \n", "line 2 is not TOML: Invalid value"),
        (b'a = 1\nb = "x', "is not TOML: "),
        (b"# ok\n\xff", "is not UTF-8 in line 2"),
        (b"#" * (1024 * 1024 + 1), "is larger than 1024 KiB"),
    ],
)
def test_a_file_that_cannot_be_read(main: Path, content: bytes, expected: str) -> None:
    main.write_bytes(content)
    (mistake,) = mistakes(main)
    assert mistake.startswith(f"{main}: ")
    assert expected in mistake


def test_a_file_that_is_not_there(main: Path) -> None:
    main.unlink()
    assert mistakes(main) == [f"{main}: cannot be read: No such file or directory"]


def test_mistakes_of_all_files_are_told_at_once(main: Path) -> None:
    directory = main.parent / "endpoints.d"
    main.write_text('[log]\nlevel = "x"\n')
    (directory / "a.toml").write_text("[")
    (directory / "b.toml").write_text("[endpoint.bills]\n")
    files = [mistake.split(": ")[0] for mistake in mistakes(main)]
    assert files == [str(directory / "a.toml"), str(main), *[str(directory / "b.toml")] * 3]


def test_dsn_file_is_read_anew(main: Path) -> None:
    assert dsn(load(main, {})) == ""
    assert dsn(load(main, {"WEBHOOKD_DSN": "postgresql:///a"})) == "postgresql:///a"
    main.write_text('[database]\ndsn_file = "dsn"\n')
    config = load(main, {})
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        dsn(config)
    (main.parent / "dsn").write_text("postgresql:///b\n")
    assert dsn(config) == "postgresql:///b"
    (main.parent / "dsn").write_text("postgresql:///c\n")
    assert dsn(config) == "postgresql:///c"
