"""Sentences about what is wrong in the configuration."""

import difflib
import ipaddress
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final, NamedTuple, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from webhookd.egress.guard import DEV_NETWORKS, address_mistake, host_mistake, url_mistake
from webhookd.model import Egress, Network
from webhookd.units import quoted

M = TypeVar("M", bound=BaseModel)
Path = tuple[str, ...]
Lines = Callable[[str], Mapping[Path, int]]  # file -> the line of each key in it

WITH_DEV: Final = "use --dev, on this machine only"
MOST_TOLD: Final = 100  # of the mistakes of a configuration; whoever has more has made one of them many times

# Sections, and keys of a section, that the documentation promises and this version does not have yet.
LATER: Final = frozenset(
    {
        ("admin",),
    }
)


class Mistake(NamedTuple):
    """What is wrong with a key of a file; or, where the file is "", with a variable that the sentence begins with."""

    file: str
    path: Path
    sentence: str


UNTOLD: Final = Mistake("", (), "")  # one of those beyond MOST_TOLD, which are counted and cost nothing


@dataclass(frozen=True, slots=True)
class Place:
    """A table of a file, and which of its keys the environment has replaced."""

    file: str
    path: Path = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    def mistake(self, sentence: str, *keys: str, item: str = "") -> Mistake:
        """The mistake of this table, or of the key in it that `keys` lead to."""
        if keys and (variable := self.variables.get(keys[0])):
            return Mistake("", (), f"{'.'.join([variable, *keys[1:]])}{item}: {sentence}")
        header = ".".join(quoted(key) if "." in key else key for key in self.path)
        key = f"{'.'.join(keys)}{item}: " if keys else ""
        return Mistake(self.file, (*self.path, *keys), f"[{header}] {key}{sentence}")


def told(mistakes: Sequence[Mistake], lines: Lines) -> list[str]:
    """The sentences as people and editors read them, `FILE:LINE: …`, and of many how many more there are.

    Only files with a mistake are asked for lines.
    """
    lines = cache(lines)
    sentences = [_told(*mistake, lines) for mistake in mistakes[:MOST_TOLD]]
    more = len(mistakes) - MOST_TOLD
    return [*sentences, f"and {more:,} more mistake{'s' if more > 1 else ''}"] if more > 0 else sentences


def _told(file: str, path: Path, sentence: str, lines: Lines) -> str:
    if not file:
        return sentence
    found = lines(file) if path else {}
    # What is missing has no line: then the table counts that it is missing from.
    line = next((found[path[:end]] for end in range(len(path), 0, -1) if path[:end] in found), None)
    return f"{file}:{line}: {sentence}" if line else f"{file}: {sentence}"


def read(model: type[M], table: object, place: Place, mistakes: list[Mistake], around: object = None) -> M | None:
    """The table as the model has it, or None after adding its mistakes."""
    try:
        return model.model_validate(table, context=around)
    except ValidationError as invalid:
        room = max(MOST_TOLD - len(mistakes), 0)
        for error in invalid.errors(include_url=False, include_input=False)[:room] if room else ():
            loc = [part for part in error["loc"] if part != "[key]"]
            keys = [str(part) for part in loc if not isinstance(part, int)]
            item = next((f" item {part + 1}" for part in loc if isinstance(part, int)), "")
            if error["type"] == "extra_forbidden":
                sentence = unknown((*place.path[:1], *keys), "key here", _keys(model, keys[:-1]))
            else:
                sentence = sentence_of(error)
            mistakes.append(place.mistake(sentence, *keys, item=item))
        mistakes += [UNTOLD] * (invalid.error_count() - room)
        return None


def unknown(path: Path, what: str, known: Iterable[str]) -> str:
    """The sentence about a word that means nothing: that it will one day, or which known one is most like it."""
    if path in LATER:
        return "is not there yet in this version of webhookd; remove it"
    return f"is no {what}{meant(path[-1], known)}"


def _keys(model: type[BaseModel], parents: list[str]) -> Iterable[str]:
    """The keys of the table that `parents` lead to."""
    for parent in parents:
        inner = table_in(model.model_fields[parent].annotation)
        if inner is None:
            return ()
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def table_in(annotation: object) -> type[BaseModel] | None:
    """The model of a key whose value is a table, also where there may be none."""
    choices = get_args(annotation) or (annotation,)
    return next((each for each in choices if isinstance(each, type) and issubclass(each, BaseModel)), None)


def sentence_of(error: Any) -> str:
    """What is wrong, as the end of a sentence that begins with the key. Never shows the value that was given."""
    context = error.get("ctx", {})
    match error["type"]:
        case "value_error":
            return str(context["error"])
        case "missing":
            return "is required"
        case "literal_error":
            # As TOML writes them.
            wanted = str(context["expected"]).replace("'", '"')
            return "wants " + wanted.replace("False", "false").replace("True", "true")
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


def egress_mistake(url: str, egress: Egress) -> str | None:
    """What is wrong with an endpoint's URL, and by what it would be allowed, if by anything; or None.

    That is --dev, or lines of the main file, which stand at the end. The addresses of a name are only known when it is
    called, so of names just `localhost` is judged.
    """
    mistake, lines = _refused(url, egress)
    if mistake is None:
        return None
    ways = [] if _refused(url, replace(egress, allow_http=True, allow_networks=DEV_NETWORKS))[0] else [WITH_DEV]
    ways += ["allow it with\n" + "\n".join(["[egress]", *lines])] if lines else []
    return f"{mistake}; if that is meant, {', or '.join(ways)}" if ways else mistake


def _refused(url: str, egress: Egress) -> tuple[str | None, list[str]]:
    """What is wrong with a URL, and the lines of [egress] that would allow it."""
    allow_http, allow_networks = egress.allow_http, egress.allow_networks
    mistake = url_mistake(url, allow_http)
    if mistake and (allow_http or url_mistake(url, True)):
        return mistake, []  # no line would allow it
    host = urlsplit(url).hostname or ""
    if not mistake and egress.proxy and host != "localhost" and (denied := host_mistake(host, 1, allow_networks)):
        return denied, []
    needed: list[str] = []
    if host == "localhost":
        if denied := address_mistake("127.0.0.1", 1, allow_networks):
            needed = ["127.0.0.0/8", "::1/128"]  # both, as one refused address refuses the resolver's whole answer
    elif denied := _literal_mistake(host, allow_networks):
        if "%" in host:
            return denied, []
        address = ipaddress.ip_address(host)
        address = getattr(address, "ipv4_mapped", None) or address
        needed = (
            ["127.0.0.0/8"] if address.version == 4 and address.is_loopback else [f"{address}/{address.max_prefixlen}"]
        )
    if not mistake and not denied:
        return None, []
    lines = ["allow_http = true"] if mistake else []
    if needed:
        lines.append(f"allow_networks = {json.dumps([str(network) for network in allow_networks] + needed)}")
    return mistake or denied, lines


def _literal_mistake(host: str, allow_networks: tuple[Network, ...]) -> str | None:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return None
    return address_mistake(host, 1, allow_networks)
