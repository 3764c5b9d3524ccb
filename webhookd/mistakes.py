"""Sentences about what is wrong in the configuration."""

import difflib
import ipaddress
import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from webhookd.guard import Network, address_mistake, url_mistake

M = TypeVar("M", bound=BaseModel)


def read(
    model: type[M], table: object, place: Callable[[str], str], mistakes: list[str], around: object = None
) -> M | None:
    """The table as the model has it, or None after adding its mistakes; `place` puts the file before each."""
    try:
        return model.model_validate(table, context=around)
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False, include_input=False):
            *parents, last = [part for part in error["loc"] if part != "[key]"] or [""]
            path = ".".join(str(part) for part in [*parents, last] if not isinstance(part, int))
            item = next((f" item {part + 1}" for part in error["loc"] if isinstance(part, int)), "")
            key = f"{path}{item}: " if path else ""
            mistakes.append(place(key + _sentence(error, str(last), _keys(model, parents))))
        return None


def _keys(model: type[BaseModel], parents: list[str | int]) -> Iterable[str]:
    """The keys of the table that `parents` lead to."""
    for parent in parents:
        inner = model.model_fields[str(parent)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return ()
        model = inner
    return model.model_fields


def _sentence(error: Any, key: str, known: Iterable[str]) -> str:
    """What is wrong, as the end of a sentence that begins with the key. Never shows the value that was given."""
    context = error.get("ctx", {})
    match error["type"]:
        case "value_error":
            return str(context["error"])
        case "extra_forbidden":
            return f"is no key here{meant(key, known)}"
        case "missing":
            return "is required"
        case "literal_error":
            return "wants " + str(context["expected"]).replace("'", '"')
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}"
        case "too_long" | "string_too_long":
            return f"is too long; at most {context['max_length']}"
        case "too_short" | "string_too_short":
            return "must not be empty"
    kinds = {
        "string": "a text in quotes",
        "int": "a whole number",
        "float": "a number",
        "finite": "a finite number",
        "bool": "true or false",
        "tuple": "a list in [ ]",
        "dict": "a table",
        "model": "a table",
    }
    kind = error["type"].partition("_")[0]
    return f"wants {kinds[kind]}" if kind in kinds else str(error["msg"])


def meant(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the known one that is most like it, or nothing."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def egress_mistake(url: str, allow_http: bool, allow_networks: tuple[Network, ...]) -> str | None:
    """What is wrong with an endpoint's URL, with the lines of the main file that would allow it, if any would; or None.

    The addresses of a name are only known when it is called, so of names just `localhost` is judged.
    """
    mistake = url_mistake(url, allow_http)
    if mistake and (allow_http or url_mistake(url, True)):
        return mistake  # no line would allow it
    host = urlsplit(url).hostname or ""
    needed: list[str] = []
    if host == "localhost":
        if denied := address_mistake("127.0.0.1", 1, allow_networks):
            needed = ["127.0.0.0/8", "::1/128"]  # both, as one refused address refuses the resolver's whole answer
    elif denied := _literal_mistake(host, allow_networks):
        if "%" in host:
            return denied
        address = ipaddress.ip_address(host)
        address = getattr(address, "ipv4_mapped", None) or address
        needed = (
            ["127.0.0.0/8"] if address.version == 4 and address.is_loopback else [f"{address}/{address.max_prefixlen}"]
        )
    if not mistake and not denied:
        return None
    lines = ["[egress]"]
    if mistake:
        lines.append("allow_http = true")
    if needed:
        lines.append(f"allow_networks = {json.dumps([str(network) for network in allow_networks] + needed)}")
    return f"{mistake or denied}; if that is meant, allow it with\n" + "\n".join(lines)


def _literal_mistake(host: str, allow_networks: tuple[Network, ...]) -> str | None:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return None
    return address_mistake(host, 1, allow_networks)
