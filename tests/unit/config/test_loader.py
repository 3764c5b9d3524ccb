"""Where the configuration is read from, and what is said when it cannot be."""

import base64
import errno
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.config.loader import dsn, find, load, section
from webhookd.config.schema import Daemon, Database
from webhookd.errors import ConfigError
from webhookd.message.signing import parse_secret

SECRET = "whsec_" + base64.b64encode(b"planted-secret-of-test-loader").decode()
ORDERS = '[endpoint.orders]\nurl = "https://hooks.example.com/"\nevents = ["*"]\n'
WITH_SECRET = f'{ORDERS}secret = "{SECRET}"\n'
REPOSITORY = Path(__file__).parents[3]


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
    monkeypatch.setattr("webhookd.config.loader._PLACES", (tmp_path / "absent.toml", Path("config/webhookd.toml")))
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
    place = f"{directory / 'orders.toml'}:4: [endpoint.orders] secret_file: {directory / 'orders.secret'}"
    (directory / "orders.secret").write_text(SECRET * 5000)
    assert mistakes(main) == [f"{place} is larger than 64 KiB"]
    (directory / "orders.secret").write_text("planted, and no secret")
    (told,) = mistakes(main)
    assert told == f"{place}: a secret starts with whsec_ (HMAC-SHA256) or whsk_ (ed25519)"
    (directory / "orders.secret").unlink()
    assert mistakes(main) == [f"{place} cannot be read: No such file or directory"]


@pytest.mark.parametrize(
    "given", ["planted", "plant.ed", "whsec_planted", "a/planted+b=", "planted.planted.pl", ".env"]
)
def test_what_may_be_a_secret_in_the_place_of_a_file_is_not_shown(main: Path, given: str) -> None:
    directory = main.parent / "endpoints.d"
    (directory / "orders.toml").write_text(ORDERS + f'secret_file = "{given}"\n')
    assert mistakes(main) == [
        f"{directory / 'orders.toml'}:4: [endpoint.orders] secret_file: the file it names cannot be read: "
        f"No such file or directory; a relative path starts at {directory}"
    ]


def test_no_endpoint_at_all(main: Path) -> None:
    directory = main.parent / "endpoints.d"
    (directory / "orders.toml").unlink()
    hint = f"write [endpoint.NAME] in a file such as {directory / 'orders.toml'}"
    assert mistakes(main) == [f"{directory}: has no endpoint; {hint}"]
    assert load(main, {}, may_be_empty=True).empty == f"{directory}: has no endpoint; {hint}"
    directory.rmdir()
    assert mistakes(main) == [f"{directory}: does not exist, and there is no other endpoint; {hint}"]
    before = main.read_text()
    main.write_text(before + '\n[api]\nlisten = "127.0.0.1:0"\n')
    assert load(main, {}).endpoints == ()
    main.write_text(WITH_SECRET)
    assert load(main, {}, may_be_empty=True).endpoints == load(main, {}).endpoints != ()
    assert load(main, {}, may_be_empty=True).empty == ""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[log]\nlevel = \n", ":2: is not TOML: Invalid value"),
        (b'a = 1\nb = "x', ":2: is not TOML: Unterminated string"),
        (b"a = 1\n[log", ":2: is not TOML: Expected ']'"),
        (b'a = 1\nb = [\n"x",\n', ":3: is not TOML: "),
        (b"# ok\n\xff", ":2: is not UTF-8"),
        (b"#" * (8 * 1024 * 1024 + 1), ": is larger than 8192 KiB"),
    ],
)
def test_a_file_that_cannot_be_read(main: Path, content: bytes, expected: str) -> None:
    main.write_bytes(content)
    (mistake,) = mistakes(main)
    assert mistake.startswith(f"{main}{expected}")


def test_a_file_that_is_not_there(main: Path) -> None:
    main.unlink()
    assert mistakes(main) == [f"{main}: cannot be read: No such file or directory"]


def test_mistakes_of_all_files_are_told_at_once(main: Path) -> None:
    directory = main.parent / "endpoints.d"
    main.write_text('[log]\nlevel = "x"\n')
    (directory / "a.toml").write_text("[")
    (directory / "b.toml").write_text("[endpoint.bills]\n")
    files = [mistake.split(": ")[0] for mistake in mistakes(main)]
    assert files == [f"{directory / 'a.toml'}:1", f"{main}:2", *[f"{directory / 'b.toml'}:1"] * 3]


def test_a_file_that_everyone_may_write_is_refused(main: Path) -> None:
    directory = main.parent / "endpoints.d"
    orders, secret = directory / "our orders.toml", directory / "orders.secret"
    (directory / "orders.toml").unlink()
    orders.write_text(ORDERS + 'secret_file = "orders.secret"\n')
    secret.write_text(SECRET)
    for file, in_a_shell in ((main, f"{main}"), (orders, f"'{orders}'"), (secret, f"{secret}")):
        file.chmod(0o666)
        (mistake,) = mistakes(main)
        assert f'can be changed by everyone; run "chmod o-w {in_a_shell}"' in mistake
        file.chmod(0o644)
    assert load(main, {}).endpoints


def test_a_folder_that_everyone_may_write_is_refused(main: Path) -> None:
    directory = main.parent / "endpoints.d"
    (directory / "orders.toml").write_text(WITH_SECRET)
    directory.chmod(0o777)
    (mistake,) = mistakes(main)
    assert f'is in a folder that everyone can change; run "chmod o-w {directory}"' in mistake
    directory.chmod(0o1777)  # nobody can take the place of another's file there
    assert load(main, {}).endpoints


def test_a_file_of_another_user_is_refused(main: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not in a container's volume, where everything belongs to somebody else."""
    directory = main.parent / "endpoints.d"
    orders = directory / "orders.toml"
    orders.write_text(WITH_SECRET)
    owners: dict[int, int] = {}  # inode -> owner
    devices: dict[int, int] = {}  # inode -> file system
    real: dict[str, Callable[..., os.stat_result]] = {"stat": os.stat, "fstat": os.fstat}

    def owned(name: str) -> Callable[..., os.stat_result]:
        def told(*args: Any, **kwargs: Any) -> os.stat_result:
            found = real[name](*args, **kwargs)
            fields = list(found)
            fields[2] = devices.get(found.st_ino, found.st_dev)
            fields[4] = owners.get(found.st_ino, found.st_uid)
            return os.stat_result(fields)

        return told

    inode, folder = orders.stat().st_ino, directory.stat().st_ino
    for name in real:
        monkeypatch.setattr(os, name, owned(name))
    owners[inode] = 4321
    (mistake,) = mistakes(main)
    assert f'belongs to a user (uid 4321) who is neither root nor webhookd; run "chown root {orders}"' in mistake
    for trusted in (0, os.geteuid()):
        owners[inode] = trusted
        assert load(main, {}).endpoints
    owners[folder] = 4321  # who could put another file in its place
    (mistake,) = mistakes(main)
    assert f'is in a folder of a user (uid 4321) who is neither root nor webhookd; run "chown root {directory}"' in (
        mistake
    )
    owners[inode] = 4321
    (mistake,) = mistakes(main)
    assert f"{orders}: belongs to a user (uid 4321)" in mistake
    devices[inode] = 77
    assert load(main, {}).endpoints  # a file that is mounted itself
    devices[folder] = 77
    assert load(main, {}).endpoints
    del owners[folder]  # a volume of ours, with a file of somebody else's
    (mistake,) = mistakes(main)
    assert "belongs to a user (uid 4321)" in mistake


def test_what_a_group_may_write_is_refused_unless_it_is_ours(main: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group of whoever works with private groups and umask 002, or fsGroup of Kubernetes, is one of ours."""
    directory = main.parent / "endpoints.d"
    orders, secret = directory / "orders.toml", directory / "orders.secret"
    orders.write_text(ORDERS + 'secret_file = "orders.secret"\n')
    secret.write_text(SECRET)
    for file in (main, orders, secret):
        file.chmod(0o660)
        assert load(main, {}).endpoints
        with monkeypatch.context() as patched:
            patched.setattr("webhookd.config.ownership.os.getegid", lambda: 4321)
            patched.setattr("webhookd.config.ownership.os.getgroups", lambda: [4322])
            group = foreign(patched, file)
            (mistake,) = mistakes(main)
            assert f'can be changed by a group (gid {group}) that webhookd is not in; run "chmod g-w {file}"' in mistake
            patched.setattr("webhookd.config.ownership.os.getgroups", lambda: [4322, 4444])
            assert load(main, {}).endpoints
        file.chmod(0o640)
    for mode, refused in ((0o775, True), (0o1775, False), (0o755, False)):
        directory.chmod(mode)
        assert load(main, {}).endpoints
        with monkeypatch.context() as patched:
            group = foreign(patched, directory)
            if not refused:
                assert load(main, {}).endpoints
                continue
            (mistake,) = mistakes(main)
            assert f'is in a folder that a group (gid {group}) can change; run "chmod g-w {directory}"' in mistake


def foreign(patched: pytest.MonkeyPatch, *paths: Path) -> int:
    """Let these belong to a group that nobody is in; its number."""
    inodes = {path.stat().st_ino for path in paths}
    for name in ("stat", "fstat"):
        real: Callable[..., os.stat_result] = getattr(os, name)

        def told(*args: Any, real: Callable[..., os.stat_result] = real, **kwargs: Any) -> os.stat_result:
            found = real(*args, **kwargs)
            fields = list(found)
            fields[5] = 4444 if found.st_ino in inodes else found.st_gid
            return os.stat_result(fields)

        patched.setattr(os, name, told)
    return 4444


def test_secrets_that_everyone_can_read_are_named() -> None:
    with TemporaryDirectory() as place:  # the temporary folders of pytest are private
        main, directory = Path(place) / "webhookd.toml", Path(place) / "endpoints.d"
        orders, secret, dsn_file = directory / "orders.toml", directory / "orders.secret", main.parent / "dsn"
        directory.mkdir()
        main.write_text('[database]\ndsn_file = "dsn"\n')
        dsn_file.write_text("postgresql:///app")
        secret.write_text(SECRET)
        orders.write_text(ORDERS + 'secret_file = "orders.secret"\n')

        def exposed(opened: int, *files: Path) -> list[Path]:
            for file in (main, orders, secret, dsn_file):
                file.chmod(0o640)
            for file in files:
                file.chmod(opened)
            found: list[Path] = []
            load(main, {}, exposed=found)
            return found

        everything = (main, orders, secret, dsn_file)
        for folder in (main.parent, directory):
            folder.chmod(0o755)
        assert exposed(0o640, *everything) == []
        assert exposed(0o644, *everything) == [secret, dsn_file]
        for folder in (main.parent, directory):
            folder.chmod(0o750)
            assert secret not in exposed(0o644, *everything), "who cannot enter the folder cannot read it"
            folder.chmod(0o755)
        for keys in (f'secret = "{SECRET}"', f'secrets = ["{SECRET}"]', f'secrets = [{{ secret = "{SECRET}" }}]'):
            orders.write_text(f"{ORDERS}{keys}\n")
            assert exposed(0o644, orders) == [orders]
        main.write_text('[database]\ndsn = "postgresql://u:visibly-fake@localhost/app"\n')
        assert exposed(0o644, main) == [main]
        main.write_text('[database]\ndsn = "postgresql:///app"\n')
        assert exposed(0o644, main) == []


def test_a_link_out_of_the_directory_is_refused(main: Path) -> None:
    link = main.parent / "endpoints.d" / "bills.toml"
    target = main.parent / "bills.toml"
    target.write_text(WITH_SECRET.replace("orders", "bills"))
    link.symlink_to(target)
    assert mistakes(main) == [f"{link}: is a link out of {link.parent}; put the file itself there"]
    target.unlink()
    assert mistakes(main) == [f"{link}: is a link out of {link.parent}; put the file itself there"]
    link.unlink()
    link.symlink_to(link.name)
    (mistake,) = mistakes(main)
    assert mistake.startswith(f"{link}: cannot be read: ")


def test_a_volume_of_kubernetes_is_read(tmp_path: Path) -> None:
    volume = tmp_path / "endpoints.d"
    real = volume / "..2026_01_31_12_00_00.123456789"
    real.mkdir(parents=True)
    (real / "orders.toml").write_text(ORDERS + 'secret_file = "orders.secret"\n')
    (real / "orders.secret").write_text(SECRET)
    (real / "orders.toml").chmod(0o644)
    (real / "orders.secret").chmod(0o440)
    (volume / "..data").symlink_to(real.name)
    for name in ("orders.toml", "orders.secret"):
        (volume / name).symlink_to(f"..data/{name}")
    (volume / ".orders.toml.swp").write_text("[")
    (volume / ".hidden.toml").write_text("[")
    volume.chmod(0o777)
    (tmp_path / "linked.d").symlink_to(volume.name)
    main = tmp_path / "webhookd.toml"
    main.write_text('[endpoints]\ndirectory = "linked.d"\n')
    assert [endpoint.secrets for endpoint in load(main, {}).endpoints] == [(parse_secret(SECRET),)]


def test_a_folder_in_the_place_of_the_main_file_is_told_with_the_file_in_it(main: Path) -> None:
    folder = main.parent
    for named, environ in ((folder, {}), (None, {"WEBHOOKD_CONFIG": str(folder)})):
        with pytest.raises(ConfigError) as refused:
            find(named, environ)
        assert refused.value.mistakes == [f"{folder}: is a folder; name the file in it, {main}"]


def test_what_is_no_file_is_told_and_not_waited_for(main: Path) -> None:
    directory = main.parent / "endpoints.d"
    os.mkfifo(directory / "a.toml")
    (directory / "b.toml").mkdir()
    assert mistakes(main) == [
        f"{directory / 'a.toml'}: is no regular file",
        f"{directory / 'b.toml'}: cannot be read: Is a directory",
    ]


def test_a_path_that_can_be_none_is_told(main: Path) -> None:
    file = main.parent / "endpoints.d" / "a.toml"
    file.write_text('[endpoint.a]\nurl = "https://example.com/"\nevents = ["*"]\nsecret_file = "a\\u0000b"\n')
    assert mistakes(main) == [
        f"{file}:4: [endpoint.a] secret_file: the file it names cannot be read: its path has a NUL character;"
        f" a relative path starts at {file.parent}"
    ]


def test_what_may_not_be_read_is_told(main: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    mend = (
        'cannot be read: Permission denied; let the group of webhookd read it: "chgrp webhookd FILE; chmod g+rX FILE"'
    )
    with monkeypatch.context() as patched:
        patched.setattr("webhookd.config.loader.os.listdir", refuse)
        assert mistakes(main) == [f"{main.parent / 'endpoints.d'}: {mend}"]
    with monkeypatch.context() as patched:
        patched.setattr("webhookd.config.loader.os.open", refuse)
        assert mistakes(main) == [f"{main}: {mend}"]
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.is_file", refuse)
        assert find(None, {}) == Path("/etc/webhookd/webhookd.toml")


def test_dsn_file_is_read_anew(main: Path) -> None:
    assert dsn(load(main, {}).database, main) == ""
    assert dsn(load(main, {"WEBHOOKD_DSN": "postgresql:///a"}).database, main) == "postgresql:///a"
    main.write_text('[database]\ndsn_file = "dsn"\n')
    database = load(main, {}).database
    assert section(main, {}, Database) == database
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        dsn(database, main)
    (main.parent / "dsn").write_text(" \n")
    with pytest.raises(ConfigError, match=f"^{main.parent / 'dsn'}: is empty; write the DSN into it"):
        dsn(database, main)
    (main.parent / "dsn").write_text("postgresql:///b\n")
    assert dsn(database, main) == "postgresql:///b"
    (main.parent / "dsn").write_text("postgresql:///c\n")
    assert dsn(database, main) == "postgresql:///c"


MISTAKES_ELSEWHERE = """
nonsense = 1
[daemn]
[delivery]
timeout = "a while"
[endpoint.x]
"""


def test_a_section_is_read_whatever_is_wrong_elsewhere(main: Path) -> None:
    main.write_text(f'{MISTAKES_ELSEWHERE}[database]\ndsn = "postgresql:///a"\n[daemon]\nenvironment = "staging"\n')
    (main.parent / "endpoints.d" / "orders.toml").write_text("no TOML")
    environ = {"WEBHOOKD_LOG__LEVEL": "loud", "WEBHOOKD_NO__SUCH": "1"}
    assert len(mistakes(main)) > 4
    assert section(main, environ, Database).dsn.get_secret_value() == "postgresql:///a"
    assert section(main, environ, Daemon).environment == "staging"
    over = {**environ, "WEBHOOKD_DSN": "postgresql:///b", "WEBHOOKD_DAEMON__ENVIRONMENT": "test"}
    assert section(main, over, Database).dsn.get_secret_value() == "postgresql:///b"
    assert section(main, over, Daemon).environment == "test"


@pytest.mark.parametrize(
    ("text", "environ", "mistake"),
    [
        ('[database]\ndsnn = "x"\n', {}, "{main}:2: [database] dsnn: is no key here; did you mean dsn?"),
        ("database = 1\n", {}, "{main}:1: [database] wants a table"),
        (
            '[database]\ndsn = "postgresql:///a"\ndsn_file = "b"\n',
            {},
            "{main}:3: [database] dsn_file: stands beside dsn; give only one of them",
        ),
        (
            "",
            {"WEBHOOKD_DATABASE__DNS": "x"},
            "WEBHOOKD_DATABASE__DNS: is no setting; did you mean WEBHOOKD_DATABASE__DSN?",
        ),
        (
            "",
            {"WEBHOOKD_DATABASE__DSN": "postgresql:///a", "WEBHOOKD_DSN": "postgresql:///b"},
            "WEBHOOKD_DATABASE__DSN and WEBHOOKD_DSN: set only one of them",
        ),
        ("[database\n", {}, "{main}:1: is not TOML: "),
    ],
)
def test_the_mistakes_of_a_section_are_told(main: Path, text: str, environ: dict[str, str], mistake: str) -> None:
    main.write_text(text)
    with pytest.raises(ConfigError) as caught:
        section(main, environ, Database)
    (told,) = caught.value.mistakes
    assert told.startswith(mistake.format(main=main))


MANY = 100_000
PARTS = "has a key of more than 32 parts; no setting has so many"
DEPTH = "has more than 32 arrays or tables in each other; no setting has so many"
DIGITS = "has a number of thousands of digits"


@pytest.mark.parametrize(
    ("text", "line", "mistake"),
    [
        ("a" + ".a" * MANY + " = 1", 1, PARTS),
        ("a" + ".a" * 33 + " = 1", 1, PARTS),
        ("a" + ".a" * MANY, 1, PARTS),
        ("\n[" + "a." * MANY + "a]\nb = 1", 2, PARTS),
        ("\n\n[[" + "a." * 3000 + "a]]", 3, PARTS),
        ("[a]\n" + "'a' . " * MANY + '"a" = 1', 2, PARTS),
        ('a = """\n\n"""\nb = { c = 1, ' + "d." * MANY + "d = 1 }", 4, PARTS),
        ("a = [\n  { " + "d." * MANY + "d = 1 } ]", 2, PARTS),
        ("a = 1\nb = " + "[" * 1000 + "]" * 1000, 2, DEPTH),
        ("a = 1\nb = " + "{ a = " * 1000 + "1" + " }" * 1000, 2, DEPTH),
        ("a = " + "[\n" * MANY, 33, DEPTH),
        ("a = 1\nb = " + "1" * MANY, 2, DIGITS),
        ("a = 1\nb = -" + "1_1" * MANY, 2, DIGITS),
    ],
)
def test_what_goes_deeper_than_anybody_needs_is_refused_before_it_is_read(
    main: Path, text: str, line: int, mistake: str
) -> None:
    """Each part of a key costs tomllib as much as all before it, and each bracket a frame of its stack."""
    for file in (main, main.parent / "endpoints.d" / "deep.toml"):
        file.write_text(text)
        assert f"{file}:{line}: {mistake}" in mistakes(main)
        file.write_text("")


@pytest.mark.parametrize(
    "text",
    [
        "# " + "a." * MANY,
        'description = "' + "a." * 400 + '"',
        "description = '''\n" + "a." * 400 + "'''",
        "headers = { x = '" + "a." * 400 + "' } # " + "." * MANY,
    ],
)
def test_dots_that_are_no_key_are_none_of_it(main: Path, text: str) -> None:
    (main.parent / "endpoints.d" / "orders.toml").write_text(WITH_SECRET + text)
    assert load(main, {}).endpoints[0].name == "orders"


TOO_DEEP = ("[" * MANY, "[" + "1" * MANY + "]", "[{" + "a." * 50_000 + "a = 1}]", "[" * 100 + "]" * 100)


@pytest.mark.parametrize("text", TOO_DEEP)
@pytest.mark.parametrize("name", ["WEBHOOKD_EGRESS__ALLOW_NETWORKS", "WEBHOOKD_DELIVERY__MAX_IN_FLIGHT"])
def test_a_variable_that_goes_as_deep_is_a_mistake_too(main: Path, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load(main, {name: text})


_PIECES = st.sampled_from(
    [
        "a",
        ".",
        "'a'",
        '"a"',
        " = ",
        "=",
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        ",",
        "\n",
        '"""',
        "'''",
        '\\"',
        "#",
        "1",
        "1_1",
        " ",
    ]
)


@given(st.lists(st.tuples(_PIECES, st.sampled_from([1, 1, 1, 2, 31, 33, 5000])), max_size=12))
def test_any_text_is_a_configuration_or_a_mistake(pieces: list[tuple[str, int]]) -> None:
    text = "".join(piece * count for piece, count in pieces)
    with TemporaryDirectory() as directory:
        file = Path(directory) / "webhookd.toml"
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:  # one without an endpoint is a mistake in any case
            load(file, {})
        assert all(len(mistake) < 100_000 for mistake in caught.value.mistakes)
