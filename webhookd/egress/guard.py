"""Which addresses and URLs may be sent to. SECURITY.md has the attacks behind it."""

import re
import unicodedata
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import unquote

from webhookd.model import Network

MAX_URL = 2048  # characters
_MAX_NAME = 253
_MAX_LABEL = 63
_MAX_PORT = 65535

# What --dev allows. Not link-local addresses: those of clouds give out credentials.
DEV_NETWORKS: Final[tuple[Network, ...]] = tuple(
    map(ip_network, ("127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
)

# The insides of clouds that look public: who runs there reaches by them what nobody else can, as by 169.254.169.254.
# Other clouds have theirs in the ranges above, such as 100.100.100.200 (Alibaba) and 192.0.0.192 (Oracle).
_CLOUDS = (
    # The host of a machine of Azure: learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
    "168.63.129.16/32",
    # Services and service endpoints of IBM Cloud, reserved in each VPC: the address ranges in its VPC documentation
    "161.26.0.0/16",
    "166.8.0.0/14",
    # restricted and private.googleapis.com, with routes in a VPC alone: cloud.google.com/vpc/docs/private-google-access
    "199.36.153.4/30",
    "199.36.153.8/30",
    "2600:2d00:2:1000::/64",
    "2600:2d00:2:2000::/64",
)

# `ipaddress.is_global` is no guard: it passes NAT64 and 6to4 loopback, ::7f00:1, fec0::1 and multicast.
_DENIED_IPV4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
            *(each for each in _CLOUDS if ":" not in each),
        ),
    )
)
_PUBLIC_IPV6 = IPv6Network("2000::/3")
_DENIED_IPV6 = tuple(
    map(
        IPv6Network,
        ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", *(each for each in _CLOUDS if ":" in each)),
    )
)

_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_PARTS = re.compile(r"(?P<scheme>[^:/?]*)://(?P<authority>[^/?]*)[/?]?.*")
# A scope id is let through here, so that the address guard may name it.
_AUTHORITY = re.compile(r"(?:\[(?P<literal>[^\[\]]*)\]|(?P<name>[^\[\]:]*))(?::(?P<port>[^:]*))?")
_LITERAL = re.compile(r"[0-9A-Fa-f:.]+(?:%25[A-Za-z0-9._~-]+)?")
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_PORT = re.compile(r"[0-9]{1,5}")
_QUAD = re.compile(r"[0-9]+(?:\.[0-9]+){3}")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_DOT = re.compile("[.\N{IDEOGRAPHIC FULL STOP}\N{FULLWIDTH FULL STOP}\N{HALFWIDTH IDEOGRAPHIC FULL STOP}]")


@lru_cache(maxsize=4096)
def address_mistake(host: str, port: int, allow_networks: tuple[Network, ...]) -> str | None:
    """Why the IP address `host` must not be dialled, or None when it may be.

    An IPv4-mapped IPv6 address counts as the IPv4 address in it. What does not parse is denied.
    """
    if not 0 < port <= _MAX_PORT:
        return f"port {port} cannot be dialled"
    if "%" in host:
        return "an address with a scope id belongs to this machine's own links"
    try:
        address = ip_address(host)
    except ValueError:
        return "this is not an IP address"
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in network for network in allow_networks):
        return None
    if isinstance(address, IPv6Address) and address not in _PUBLIC_IPV6:
        return f"{address} is not a public address"
    denied = _DENIED_IPV6 if isinstance(address, IPv6Address) else _DENIED_IPV4
    for network in denied:
        if address in network:
            return f"{address} is in {network}, which is not public"
    return None


def host_mistake(host: str, port: int, allow_networks: tuple[Network, ...]) -> str | None:
    """Why whoever resolves the host of a URL for us must not be asked to, or None when it may be.

    A name whose last label is a number is an address to most resolvers, as `0x7f.1` and `2130706433` are (WHATWG URL
    3.5); `localhost` is wherever they run (RFC 6761 6.3).
    """
    if ":" in host:  # a mapped address may end in a quad, and is none of the names below
        return address_mistake(host, port, allow_networks)
    name = host.removesuffix(".").lower()
    last = name.rpartition(".")[2]
    if last == "localhost":
        return address_mistake("127.0.0.1", port, allow_networks)
    if _NUMBER.fullmatch(last) and not _QUAD.fullmatch(name):
        return "a host that ends in a number is an address in disguise; write the address itself"
    if _NUMBER.fullmatch(last):
        return address_mistake(name, port, allow_networks)
    return None


def url_mistake(url: str, allow_http: bool) -> str | None:
    """One sentence about what is wrong with an endpoint's URL, or None. Of the URL it shows the host at most."""
    if len(url) > MAX_URL:
        return f"the URL is longer than {MAX_URL} characters"
    if not _PRINTABLE.fullmatch(url):
        parts = _PARTS.fullmatch(url)
        if parts and (mistake := _foreign_mistake(parts["authority"])):
            return mistake
        return "the URL must be printable ASCII without spaces; percent-encode everything else"
    if "\\" in url:
        return "the URL must not contain a backslash"
    if "#" in url:
        return "the URL must not have a fragment (#...)"
    parts = _PARTS.fullmatch(url)
    scheme = parts["scheme"].lower() if parts else ""
    if parts is None or scheme not in ("http", "https"):
        return (
            f"the URL must start with https:// {'or http://' if allow_http else '(or http://, where that is allowed)'}"
        )
    if scheme == "http" and not allow_http:
        return "the URL must start with https://, because http is not allowed"
    return _authority_mistake(parts["authority"])


def _authority_mistake(authority: str) -> str | None:
    if "@" in authority:
        return "the URL must not carry a user name or password; use a header instead"
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        return "the URL's host cannot be read"
    port = parts["port"]
    if port is not None and not (_PORT.fullmatch(port) and 0 < int(port) <= _MAX_PORT):
        return f"the URL's port must be a number from 1 to {_MAX_PORT}"
    if parts["literal"] is not None:
        return _literal_mistake(parts["literal"])
    return _name_mistake(parts["name"])


def _literal_mistake(literal: str) -> str | None:
    try:
        readable = _LITERAL.fullmatch(literal) and IPv6Address(literal.replace("%25", "%"))
    except ValueError:
        readable = None
    return None if readable else "the URL's host is in brackets but is not an IPv6 address"


def _name_mistake(name: str) -> str | None:
    if not name:
        return "the URL has no host"
    if not _NAME.fullmatch(name):
        return _foreign_mistake(name) or "the URL's host may hold only letters, digits, dots, hyphens and underscores"
    labels = name.removesuffix(".").split(".")  # one trailing dot marks a fully qualified name
    if not all(labels):
        return "the URL's host has an empty label (two dots in a row, or one in front)"
    if len(name) > _MAX_NAME or max(map(len, labels)) > _MAX_LABEL:
        return f"the URL's host has a label longer than {_MAX_LABEL} characters, or is longer than {_MAX_NAME}"
    return None


def _foreign_mistake(authority: str) -> str | None:
    """What to write for a host that has letters beyond ASCII, also percent-encoded ones; None if there are none."""
    name = unquote(authority.partition(":")[0], errors="replace")
    if "@" in authority or name.isascii():
        return None
    how = "the URL's host must be written as punycode"
    written = "" if "\N{REPLACEMENT CHARACTER}" in name else ".".join(map(_punycode, _DOT.split(name)))
    if _NAME.fullmatch(written):
        return f"{how}: {written}" if "xn--" in written else None
    return f"{how}, which begins with xn--"


def _punycode(label: str) -> str:
    """A label as the DNS has it (RFC 3492). As IDNA 2008 it keeps `ß`, which Python's own codec makes `ss`."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).lower())
    return plain if plain.isascii() else f"xn--{plain.encode('punycode').decode()}"
