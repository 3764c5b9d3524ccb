"""DSNs as people write them: what is made of each for asyncpg, and the sentence for one that cannot be used."""

from collections.abc import MutableSequence
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from asyncpg import connect_utils
from hypothesis import given
from hypothesis import strategies as st

from webhookd.store.dsn import Place, for_asyncpg, parsed, places, service

PASSWORD = "pl@nted/p?a#s:s w%rd"


def kept(_: MutableSequence[Place]) -> None:
    """No other order."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("postgresql://", {}),
        ("postgres://localhost", {"host": "localhost"}),
        (" postgresql:///shop\n", {"dbname": "shop"}),
        ("postgresql://h/shop", {"host": "h", "dbname": "shop"}),
        ("postgresql://u:p%40%2F@h:5433/shop", {"user": "u", "password": "p@/", "host": "h", "port": "5433"}),
        ("postgresql://u:p?x#y@h/", {"user": "u", "password": "p?x#y", "host": "h"}),
        ("postgresql://u@/shop?host=%2Frun%2Fpg", {"user": "u", "dbname": "shop", "host": "/run/pg"}),
        ("postgresql://%2Frun%2Fpg/shop", {"host": "/run/pg", "dbname": "shop"}),
        ("postgresql://a:1,b,[::1]:3/x", {"host": "a,b,::1", "port": "1,5432,3", "dbname": "x"}),
        ("postgresql://a,b/x?port=7", {"host": "a,b", "port": "7"}),
        ("postgresql://h/x?ssl=true", {"sslmode": "require", "host": "h"}),
        ("postgresql://h/x?options=-c%20a%3Db", {"options": "-c a=b", "host": "h"}),
        ("host=h dbname=shop", {"host": "h", "dbname": "shop"}),
        (r"host = h password='a b\'c' user=x\ y", {"host": "h", "password": "a b'c", "user": "x y"}),
        ("password=it's host=h", {"password": "it's", "host": "h"}),
        ("host='' dbname=shop", {"dbname": "shop"}),
    ],
)
def test_both_forms_of_libpq_are_read(text: str, expected: dict[str, str]) -> None:
    found = parsed(text)
    assert {name: found.get(name) for name in expected} == expected
    assert "" not in found.values()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('"postgresql://u:planted@h/x"', "stands in quotes"),
        ("'host=h'", "stands in quotes"),
        ("postgresql://u:pl@nted@h/x", 'raw "@": write that as %40'),
        ("postgresql://u:pl/anted@h/x", 'raw "/": write that as %2F'),
        ("postgresql://u:pl%anted@h/x", 'raw "%", which begins a percent-encoded sign: write it as %25'),
        ("postgresql://u:pl@ant/ed@h/x", 'has a raw "@" behind the host: write "@" as %40'),
        ("postgresql://u:p@planted?user=anted@h/x", 'has a raw "@" behind the host'),
        ("postgresql://h:planted/x", "has a host or a port that cannot be read"),
        ("postgresql://h:99999/x", "port wants a number from 1 to 65535"),
        ("postgresql://h:0/x", "port wants a number"),
        ("postgresql://a,b,c/x?port=1,2", "has 2 ports for 3 hosts"),
        ("postgresql://a,,c/x", "has a host that is empty"),
        ("postgresql://[::1/x", "has a host or a port that cannot be read"),
        ("postgresql://h/x?planted", 'wants name=value behind its "?"'),
        ("postgresql://h/x?search_path=a", "libpq has no parameter search_path; leave it out"),
        ("mysql://u:planted@h/x", 'must begin with "postgresql://", or be words such as host='),
        ("shop", 'must begin with "postgresql://"'),
        ("host=h planted", "has words that are no name=value"),
        ("password=pl anted host=h", "has words that are no name=value"),
        ("host=h password=pl anted=x", "has words that are no name=value"),
        ("host=h password='planted", "has words that are no name=value"),
        ("postgresql://h/x?hostaddr=1.2.3.4", "hostaddr: write the address as host"),
        ("postgresql://h/x?require_auth=scram-sha-256", "require_auth: asyncpg answers as the server asks"),
        (
            "postgresql://h/x?sslmode=verify_full",
            "sslmode wants disable, allow, prefer, require, verify-ca, verify-full",
        ),
        ("postgresql://h/x?connect_timeout=soon", "connect_timeout wants a whole number"),
        (
            "postgresql://h/x?sslrootcert=system&sslmode=require",
            "sslrootcert=system goes with sslmode=verify-full alone",
        ),
    ],
)
def test_a_dsn_that_cannot_be_used_is_explained(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        parsed(text)
    assert why in str(caught.value)
    assert "planted" not in str(caught.value)
    assert "anted" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "postgres://USER:PASSWORD@HOST/db",
        "postgresql://USER:PASSWORD@HOST:PORT/DATABASE?name=value",
        "postgresql://app:planted@db:PORT/app",
        "postgresql://app:<password>@localhost/app",
        "postgresql://app:<your password>@localhost/app",
        "postgresql://app:[YOUR-PASSWORD]@db.example.com:5432/app",
        "postgresql://app:${PGPASSWORD}@db/app",
        "postgresql://app:$DB_PASSWORD@db/app",
        "postgresql://{user}:planted@db/app",
        "postgresql://…",
        "postgresql://app:...@db/app",
        "host=HOST dbname=app",
        "host=… dbname=…",
        "host=h password='<password>'",
    ],
)
def test_a_placeholder_that_was_left_in_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"^still has a placeholder, such as USER, <password> or …: write") as caught:
        parsed(text)
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://user:password@host/database",
        "postgresql://USERS:PASSWORDS@HOST1/app",
        "postgresql://u:x<a>@h/app",
        "postgresql://u:a$b@h/app",
        "postgresql://u:p...q@h/app",
        "host=h password='PASSWORD of mine'",
    ],
)
def test_what_only_looks_a_little_like_one_is_taken(text: str) -> None:
    assert parsed(text)["password"]


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_password_is_in_a_sentence(before: str, after: str) -> None:
    for text in (f"postgresql://u:{before}Zq7{after}@h/x", f"host=h password={before}Zq7{after}"):
        try:
            parsed(text)
        except ValueError as error:
            assert "Zq7" not in str(error)  # noqa: PT017 - it need not be one


def asked(text: str, **how: Any) -> Any:
    """What asyncpg reads of what is made for it."""
    dsn = for_asyncpg(parsed(text), how.pop("shuffle", kept), **how)
    names = ("host", "port", "user", "password", "passfile", "database", "ssl", "service", "servicefile", "direct_tls")
    others = ("server_settings", "target_session_attrs", "krbsrvname", "gsslib")
    return connect_utils._parse_connect_dsn_and_args(  # type: ignore[attr-defined]  # not in the stubs
        **{**dict.fromkeys(names + others), "dsn": dsn}
    )


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("postgresql://h/x", [("h", 5432)]),
        ("postgresql://a:1,b,[::1]:3/x", [("a", 1), ("b", 5432), ("::1", 3)]),
        ("host=a,::1 port=7 dbname=x", [("a", 7), ("::1", 7)]),
        ("postgresql:///x?host=/run/pg", ["/run/pg/.s.PGSQL.5432"]),
        ("postgresql:///x?host=/run/pg,h&port=1,2", ["/run/pg/.s.PGSQL.1", ("h", 2)]),
    ],
)
def test_asyncpg_goes_where_libpq_would(text: str, addresses: list[Any]) -> None:
    found, parameters = asked(text)
    assert found == addresses
    assert parameters.database == "x"
    assert [str(place) for place in places(parsed(text))] == [
        each if isinstance(each, str) else f"[{each[0]}]:{each[1]}" if ":" in each[0] else f"{each[0]}:{each[1]}"
        for each in addresses
    ]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_a_password_comes_through_as_it_is(password: str) -> None:
    words = password.replace("\\", "\\\\").replace("'", "\\'")
    for text in (f"postgresql://u:{quote(password, safe='')}@h/x", f"host=h dbname=x user=u password='{words}'"):
        assert asked(text)[1].password == password


def test_asyncpg_gets_nothing_that_is_ours_or_has_no_effect() -> None:
    text = (
        "postgresql://h/x?connect_timeout=3&keepalives=0&channel_binding=require&application_name=mine&options=-c%20a=b"
    )
    _, parameters = asked(text)
    assert parameters.server_settings == {"options": "-c a=b"}
    made = for_asyncpg(parsed("postgresql://h/x?sslrootcert=system&sslcert=a&sslmode=verify-full"), kept, own_tls=True)
    assert "ssl" not in made


def test_hosts_are_tried_in_another_order_where_that_is_wanted() -> None:
    text = "postgresql://a:1,b:2/x"
    assert asked(text, shuffle=MutableSequence.reverse)[0] == [("a", 1), ("b", 2)]
    assert asked(f"{text}?load_balance_hosts=disable", shuffle=MutableSequence.reverse)[0] == [("a", 1), ("b", 2)]
    assert asked(f"{text}?load_balance_hosts=random", shuffle=MutableSequence.reverse)[0] == [("b", 2), ("a", 1)]


SERVICES = "# ours\n[other]\nhost=no\n[shop]\n# the primary\nhost = db.example\nconnect_timeout=3\n\n[last]\nhost=no\n"


def test_a_service_is_read_as_libpq_has_it() -> None:
    assert service(SERVICES, "shop") == {"host": "db.example", "connect_timeout": "3"}
    assert service(SERVICES, "nobody") is None
    for line, why in (
        ("planted", "there must be name=value"),
        ("service=a", "there must be"),
        ("nope=1", "no parameter"),
    ):
        with pytest.raises(ValueError, match=f"service shop: .*{why}"):
            service(f"[shop]\n{line}\n", "shop")


def test_a_dsn_for_asyncpg_is_a_uri() -> None:
    assert urlsplit(for_asyncpg(parsed(f"user=u password='{PASSWORD}'"), kept)).scheme == "postgresql"
