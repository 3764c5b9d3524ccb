"""The table of addresses and the rules for URLs, against the list of what must never be reached."""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.egress.guard import address_mistake, host_mistake, url_mistake
from webhookd.model import Network

NONE: tuple[Network, ...] = ()

DENIED = [
    "127.0.0.1",
    "::1",
    "0.0.0.0",  # noqa: S104 - an address that must be refused
    "::",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "::7f00:1",
    "fec0::1",
    "ff02::1",
    "fe80::1",
    "fe80::1%lo",
    "fe80::1%25lo",
    "2606:4700:4700::1111%lo",
    "fd00:ec2::254",
    "10.1.2.3",
    "100.100.100.200",
    "168.63.129.16",
    "::ffff:168.63.129.16",
    "161.26.0.10",
    "166.9.1.1",
    "199.36.153.4",
    "199.36.153.11",
    "2600:2d00:2:1000::1",
    "2600:2d00:2:2000::1",
    "fd00:42::42",
    "fd20:ce::254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.19.0.1",
    "198.51.100.7",
    "203.0.113.7",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "2001:db8::1",
    "3fff::1",
    "4000::1",
]
UNPARSABLE = ["localhost", "0x7f.1", "0xA9FEA9FE", "2130706433", "127.1", "017700000001", "", "1.2.3.4.", "[::1]"]
PUBLIC = ["1.1.1.1", "172.15.255.255", "172.32.0.0", "198.17.255.255", "223.255.255.255", "2606:4700:4700::1111"]
PUBLIC += ["168.63.129.15", "168.63.129.17", "166.7.255.255", "166.12.0.0", "199.36.153.12", "2600:2d00:2:3000::1"]


def within(*networks: str) -> st.SearchStrategy[IPv6Address]:
    """Addresses of these IPv6 networks."""
    return st.sampled_from([IPv6Network(network) for network in networks]).flatmap(
        lambda network: st.integers(0, network.num_addresses - 1).map(lambda offset: network[offset])
    )


@pytest.mark.parametrize("host", DENIED + UNPARSABLE)
def test_internal_and_unreadable_addresses_are_denied(host: str) -> None:
    assert address_mistake(host, 443, NONE)


@pytest.mark.parametrize("host", [*PUBLIC, "::ffff:1.1.1.1"])
def test_public_addresses_are_allowed(host: str) -> None:
    assert address_mistake(host, 443, NONE) is None


@given(st.integers(0, 2**32 - 1).map(IPv4Address), st.booleans())
def test_a_mapped_address_is_judged_like_the_address_in_it(address: IPv4Address, allowed: bool) -> None:
    networks: tuple[Network, ...] = (ip_network("10.0.0.0/8"),) if allowed else NONE
    assert address_mistake(f"::ffff:{address}", 443, networks) == address_mistake(str(address), 443, networks)


@given(within("::/8", "64:ff9b::/32", "2002::/16", "100::/8", "fc00::/6"))
def test_addresses_that_stand_for_others_are_denied(address: IPv6Address) -> None:
    if address.ipv4_mapped is None:
        assert address_mistake(str(address), 443, NONE)


@given(st.integers(0, 2**128 - 1).map(IPv6Address))
def test_only_global_unicast_is_ever_allowed(address: IPv6Address) -> None:
    if address_mistake(str(address), 443, NONE) is None and address.ipv4_mapped is None:
        assert address in IPv6Network("2000::/3")


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_does_not_exist_is_denied(port: int) -> None:
    assert address_mistake("1.1.1.1", port, NONE)


def test_a_network_can_be_opted_in() -> None:
    networks: tuple[Network, ...] = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert address_mistake("10.1.2.3", 80, networks) is None
    assert address_mistake("::ffff:10.1.2.3", 80, networks) is None
    assert address_mistake("fd00:ec2::254", 80, networks) is None
    assert address_mistake("127.0.0.1", 80, networks)
    assert address_mistake("10.1.2.3", 0, networks)
    assert address_mistake("fd00::1%lo", 80, networks)


@given(st.text(), st.integers())
def test_no_text_raises(text: str, port: int) -> None:
    address_mistake(text, port, NONE)
    url_mistake(text, True)
    url_mistake(f"https://{text}", True)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com/",
        "HTTPS://EXAMPLE.com:65535/a%2Fb?sig=a%2Fb&x=//y:z@",
        "https://example.com?x=1",
        "https://example.com./hook",
        "https://my_host/hook",
        "https://1.1.1.1:1/",
        "https://[2606:4700:4700::1111]:8443/",
        "https://[fe80::1%25lo]/",  # for the address guard to refuse
        "https://" + "a" * 63 + ".example/",
        "https://e.example/" + "x" * (2048 - 18),
    ],
)
def test_urls_that_can_be_sent_to(url: str) -> None:
    assert url_mistake(url, False) is None


@pytest.mark.parametrize(
    ("url", "about"),
    [
        ("https://user:pw@example.com/", "user name"),
        ("https://user@example.com/", "user name"),
        ("https://example.com/#part", "fragment"),
        ("https://exa mple.com/", "printable"),
        ("https://example.com/\r\nx: y", "printable"),
        ("https://example.com/\n", "printable"),
        ("https://example.com/\x00", "printable"),
        ("https://ex\xe4mple.com/", "punycode: xn--exmple-cua.com"),
        ("https://\uff11\uff12\uff17\u3002\uff10\u3002\uff10\u3002\uff11/", "printable"),
        ("", "printable"),
        ("https://example.com\\@127.0.0.1/", "backslash"),
        ("ws://example.com/", "https://"),
        ("//h", "https://"),
        ("/path", "https://"),
        ("https:example.com", "https://"),
        ("file:///etc/passwd", "https://"),
        ("http://example.com/", "http is not allowed"),
        ("https://example.com:0/", "port"),
        ("https://example.com:65536/", "port"),
        ("https://example.com:/", "port"),
        ("https://example.com:+80/", "port"),
        ("https://example.com:80:80/", "host"),
        ("https://", "no host"),
        ("https:///path", "no host"),
        ("https://:443/", "no host"),
        ("https://a..b/", "empty label"),
        ("https://.a/", "empty label"),
        ("https://./", "empty label"),
        ("https://" + "a" * 64 + ".example/", "label longer"),
        ("https://" + "a." * 127 + "a/", "longer than 253"),
        ("https://exa%6Dple.com/", "letters"),
        ("https://b\u00fccher.example/hook", "punycode: xn--bcher-kva.example"),
        ("https://BU\u0308CHER.example:8443", "punycode: xn--bcher-kva.example"),  # decomposed, as macOS writes it
        ("https://b%C3%BCcher.example/", "punycode: xn--bcher-kva.example"),
        ("https://stra\u00dfe.example/", "punycode: xn--strae-oqa.example"),
        ("https://\u4f8b\u3048\u3002\u30c6\u30b9\u30c8/", "punycode: xn--r8jz45g.xn--zckzah"),
        ("https://b\u00fc cher.example/", "punycode, which begins with xn--"),
        ("https://b%FCcher.example/", "punycode, which begins with xn--"),
        ("https://user:b\u00fccher@e.example/", "printable ASCII"),
        ("https://e.example/b\u00fccher", "percent-encode"),
        ("https://[::1/", "host"),
        ("https://[nonsense]/", "brackets"),
        ("https://[1.2.3.4]/", "brackets"),
        ("https://[]/", "brackets"),
        ("https://e.example/" + "x" * (2049 - 18), "2048"),
    ],
)
def test_urls_that_are_refused_with_the_reason(url: str, about: str) -> None:
    mistake = url_mistake(url, False)
    assert mistake is not None
    assert about in mistake


def test_http_where_it_is_allowed() -> None:
    assert url_mistake("http://example.com/", True) is None
    for allowed, told in ((True, "or http://"), (False, "(or http://, where that is allowed)")):
        assert url_mistake("localhost:3000", allowed) == f"the URL must start with https:// {told}"


@pytest.mark.parametrize(
    "host",
    [host for host in DENIED + UNPARSABLE if host not in ("", "[::1]", "1.2.3.4.")]
    + ["127.0.0.1.", "0X7F.1", "1.2.3.4.5", "a.0x", "LOCALHOST.", "a.localhost"],
)
def test_nobody_is_asked_to_look_up_what_is_denied(host: str) -> None:
    assert host_mistake(host, 443, NONE)


@pytest.mark.parametrize("host", [*PUBLIC, "example.com", "example.com.", "1.example.com", "x0", "0x7f.1.com"])
def test_names_and_public_addresses_may_be_looked_up(host: str) -> None:
    assert host_mistake(host, 443, NONE) is None


def test_what_is_allowed_may_be_looked_up() -> None:
    assert host_mistake("localhost", 443, (ip_network("127.0.0.0/8"),)) is None
    assert host_mistake("10.1.2.3", 443, (ip_network("10.0.0.0/8"),)) is None


def spellings(address: IPv4Address | IPv6Address) -> set[str]:
    """How one address may be written, by Python before 3.13, by it, and by others."""
    if isinstance(address, IPv4Address):
        number = int(address)
        return {
            str(address),
            f"::ffff:{address}",
            f"::FFFF:{address}",
            f"::ffff:{number >> 16:x}:{number & 0xFFFF:x}",
            f"0:0:0:0:0:ffff:{address}",
            f"::{address}",
            f"64:ff9b::{address}",
        }
    number = int(address)
    quad = IPv4Address(number & 0xFFFFFFFF)
    above = ":".join(f"{number >> bits & 0xFFFF:x}" for bits in range(112, 16, -16))
    return {str(address), address.compressed.upper(), address.exploded, f"{above}:{quad}"}


MAPPED = st.one_of(st.just(IPv4Address(0)), st.ip_addresses(v=4))


@given(st.one_of(st.ip_addresses(), within("::ffff:0:0/96", "::/96", "64:ff9b::/96"), MAPPED))
def test_an_address_is_judged_alike_with_and_without_a_proxy(address: IPv4Address | IPv6Address) -> None:
    for host in spellings(address):
        assert host_mistake(host, 443, NONE) == address_mistake(host, 443, NONE), host


@given(st.one_of(st.ip_addresses(v=6), within("::ffff:0:0/96", "::/96", "64:ff9b::/96")))
def test_an_address_is_judged_alike_however_it_is_written(address: IPv6Address) -> None:
    assert len({address_mistake(host, 443, NONE) for host in spellings(address)}) == 1


@pytest.mark.parametrize("host", ["::ffff:0.0.0.0", "::ffff:0:0", "::ffff:127.0.0.1", "::ffff:7f00:1"])
@pytest.mark.parametrize("judge", [address_mistake, host_mistake])
def test_a_mapped_address_is_named_as_what_it_is(
    host: str, judge: Callable[[str, int, tuple[Network, ...]], str | None]
) -> None:
    """Python 3.13 writes mapped addresses in another way, and no part may go by that."""
    inner = "127.0.0.1" if host.endswith((".1", ":1")) else "0.0.0.0"  # noqa: S104 - an address that must be refused
    assert judge(host, 443, NONE) == address_mistake(inner, 443, NONE)
