"""What of the configuration is secret, and where it is: in the file itself, in another, a variable or a credential.

Blanks and newlines around it in the latter three are no part of it, as editors and shells leave some there. As with
all checks, no sentence says what was found.
"""

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, time
from types import MappingProxyType
from typing import Annotated, Final, TypeVar

from pydantic import AfterValidator, PlainValidator, ValidationInfo

from webhookd.config.checks import CONTROL, Around, HeaderName, Kind, Many, around_of, name_mistake
from webhookd.message.formats import compile_header_value
from webhookd.message.sealing import SealingKey, parse_key
from webhookd.model import HeaderValue, Key
from webhookd.policy.access import EVERYBODYS
from webhookd.store.dsn import Located
from webhookd.units import quoted

_CREDENTIAL = re.compile(r"(?!\.\.?$)[^/\x00-\x1f\x7f]{1,255}")
_CLIENT_WORD = re.compile(r"[\x20-\x7e]{1,1024}")  # RFC 6749, appendix A
_TOKEN = re.compile(r"[\x21-\x7e]{20,1024}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
T = TypeVar("T")


def _secret(value: object, info: ValidationInfo) -> Key:
    if not isinstance(value, str):
        raise ValueError("wants a text in quotes")
    return _parsed(around_of(info).parse_secret, value)


def _parsed(parse: Callable[[str], T], text: str) -> T:
    """What is made of a text; a sentence about one that was elsewhere begins with that file or variable."""
    try:
        return parse(text)
    except ValueError as error:
        if isinstance(text, Located):
            raise ValueError(f"{text.origin}: {error}") from None
        raise


def _one_of_several(value: object, info: ValidationInfo) -> Key:
    if not isinstance(value, dict):
        return _secret(value, info)
    given = [key for key in ("secret", *_SOURCES) if key in value]
    if len(given) != 1 or not value.keys() <= {given[0], "until"}:
        raise ValueError("wants one of secret, file, env and credential, and until = 2027-01-31 beside it")
    found = value[given[0]]
    text = found if given[0] == "secret" else _SOURCES[given[0]](found, around_of(info))
    key = _secret(text, info)
    return replace(key, until=_moment(value["until"])) if "until" in value else key


def _moment(value: object) -> float:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.timestamp()
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime.combine(value, time(), UTC).timestamp()
    raise ValueError("until wants a date such as 2027-01-31, which begins in UTC, or a time with its offset")


def _one_secret(value: object, info: ValidationInfo) -> tuple[Key, ...]:
    return (_secret(value, info),)


def _file_secret(value: object, info: ValidationInfo) -> tuple[Key, ...]:
    return (_parsed(around_of(info).parse_secret, _of_file(value, around_of(info))),)


def _pem_file(value: object, info: ValidationInfo) -> str:
    return _of_file(value, around_of(info))


def _environ_secret(value: object, info: ValidationInfo) -> tuple[Key, ...]:
    return (_parsed(around_of(info).parse_secret, _of_environ(value, around_of(info))),)


def _credential_secret(value: object, info: ValidationInfo) -> tuple[Key, ...]:
    return (_parsed(around_of(info).parse_secret, _of_credential(value, around_of(info))),)


def _of_file(value: object, around: Around) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("wants the path of a file")
    return _stripped(around.read_secret(value))


def _stripped(text: str) -> str:
    """Without the blanks and newlines around it, and with the place that it was found at."""
    return Located(text.strip(), text.origin) if isinstance(text, Located) else text.strip()


def _of_environ(value: object, around: Around) -> str:
    if not isinstance(value, str) or not (found := around.environ.get(value, "").strip()):
        # The value is not shown: it may be a secret that was meant for another key.
        raise ValueError("the environment variable it names is not set")
    return Located(found, f"${value}")


def _of_credential(value: object, around: Around) -> str:
    if not isinstance(value, str) or not _CREDENTIAL.fullmatch(value):
        raise ValueError("wants the name of a systemd credential, without its folder")
    if not (folder := around.environ.get("CREDENTIALS_DIRECTORY")):
        raise ValueError("$CREDENTIALS_DIRECTORY is not set; start webhookd by a systemd unit with LoadCredential=")
    try:
        text = around.read_secret(f"{folder}/{value}")
    except ValueError as error:
        raise ValueError(f"{error}; the unit needs LoadCredential= or SetCredential= of that name") from None
    return _stripped(text)


_SOURCES: Final = {"file": _of_file, "env": _of_environ, "credential": _of_credential}


def _header_value(value: object, info: ValidationInfo) -> str | HeaderValue:
    if isinstance(value, dict):
        return _header_elsewhere(value, around_of(info))
    if not isinstance(value, str):
        raise ValueError('wants a text in quotes, or a table such as { file = "api.key" }')
    if CONTROL.search(value):
        raise ValueError("holds a control character; write one line of plain text")
    return compile_header_value(value)


def _header_elsewhere(table: Mapping[str, object], around: Around) -> str:
    """A value whose secret part is not in the table itself. It has no placeholders, as a token may have any sign."""
    given = [key for key in _SOURCES if key in table]
    texts = {key: value for key, value in table.items() if key in ("prefix", "user") and isinstance(value, str)}
    if len(given) != 1 or len(table) != 1 + len(texts) or len(texts) > 1:
        raise ValueError('wants one of file, env and credential, and prefix = "Bearer " or user = "NAME" beside it')
    found = _SOURCES[given[0]](table[given[0]], around)
    place = f"{found.origin}: " if isinstance(found, Located) else ""
    if "user" in texts:
        if ":" in texts["user"]:
            raise ValueError("user must not have a colon (RFC 7617)")
        try:
            found = "Basic " + b64encode(f"{texts['user']}:{found}".encode()).decode()
        except UnicodeEncodeError:
            raise ValueError(f"{place}wants UTF-8, which what was found is not") from None
    value = texts.get("prefix", "") + found
    if not _HEADER_VALUE.fullmatch(value):
        raise ValueError(f"{place}wants one line of printable ASCII, which what was found is not")
    return value


def _authorization(value: object, info: ValidationInfo) -> str:
    if isinstance(value, dict):
        return _header_elsewhere(value, around_of(info))
    if not isinstance(value, str) or (value and not _HEADER_VALUE.fullmatch(value)):
        raise ValueError('wants a text such as "Basic …", or a table such as { file = "password", user = "NAME" }')
    return value


def _client_word(value: object) -> str:
    if not isinstance(value, str) or not _CLIENT_WORD.fullmatch(value):
        raise ValueError("wants 1 to 1024 printable ASCII characters")
    return value


def _client_secret(value: object, info: ValidationInfo) -> str:
    if isinstance(value, dict):
        given = [key for key in _SOURCES if key in value]
        if len(given) != 1 or len(value) != 1:
            raise ValueError("wants a text in quotes, or one of file, env and credential")
        value = _SOURCES[given[0]](value[given[0]], around_of(info))
        return _parsed(_client_word, value)
    return _client_word(value)


def _sealing_key(value: object, info: ValidationInfo) -> SealingKey:
    given = [key for key in _SOURCES if key in value] if isinstance(value, dict) else []
    if not isinstance(value, dict) or len(given) != 1 or value.keys() != {"id", given[0]}:
        raise ValueError('wants a table such as { id = "2026", credential = "webhookd.key" }, or with file or env')
    if not isinstance(value["id"], str) or (mistake := name_mistake(value["id"])):
        raise ValueError(f"id: {mistake}" if isinstance(value["id"], str) else "id: wants a text in quotes")
    return SealingKey(value["id"], _parsed(parse_key, _SOURCES[given[0]](value[given[0]], around_of(info))))


def _tokens_file(value: object, info: ValidationInfo) -> Mapping[bytes, str]:
    """The hashes of the tokens in a file, and their roles: a line each has a role and a token."""
    if value == "":
        return {}
    text = _of_file(value, around_of(info))
    place = f"{text.origin}: " if isinstance(text, Located) else ""
    found: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or words[0] not in EVERYBODYS or not _TOKEN.fullmatch(words[1]):
            raise ValueError(f"{place}line {number} wants a role and a token: {', '.join(EVERYBODYS)}")
        found[hashlib.sha256(words[1].encode()).digest()] = words[0]
    return MappingProxyType(found)


def _different(keys: tuple[SealingKey, ...]) -> tuple[SealingKey, ...]:
    ids = [key.id for key in keys]
    if twice := next((each for each in ids if ids.count(each) > 1), None):
        raise ValueError(f"{quoted(twice)} is the id of two keys; rename one of them")
    return keys


def _distinct(headers: dict[str, T]) -> dict[str, T]:
    seen: dict[str, str] = {}
    for name in headers:
        if (other := seen.setdefault(name.lower(), name)) != name:
            raise ValueError(f"{quoted(other)} and {quoted(name)} are one header; give it once")
    return headers


_SECRET: Final = {"type": "string", "minLength": 8}

Keys = tuple[Key, ...]
Secret = Annotated[Key, PlainValidator(_one_of_several), Kind("secret or table", {"type": ["string", "object"]})]
OneSecret = Annotated[Keys, PlainValidator(_one_secret), Kind("secret", _SECRET)]
FileSecret = Annotated[Keys, PlainValidator(_file_secret), Kind("path", {"type": "string"})]
PemFile = Annotated[str, PlainValidator(_pem_file), Kind("path", {"type": "string"})]
EnvironSecret = Annotated[Keys, PlainValidator(_environ_secret), Kind("variable", {"type": "string"})]
CredentialSecret = Annotated[Keys, PlainValidator(_credential_secret), Kind("name", {"type": "string"})]
SealKey = Annotated[SealingKey, PlainValidator(_sealing_key), Kind("table", {"type": "object"})]
SealKeys = Annotated[Many[SealKey], AfterValidator(_different)]
TokensFile = Annotated[Mapping[bytes, str], PlainValidator(_tokens_file), Kind("path", {"type": "string"})]
ClientWord = Annotated[str, PlainValidator(_client_word), Kind("text", {"type": "string", "maxLength": 1024})]
ClientSecret = Annotated[str, PlainValidator(_client_secret), Kind("text or table", {"type": ["string", "object"]})]
Authorization = Annotated[str, PlainValidator(_authorization), Kind("text or table", {"type": ["string", "object"]})]
Headers = Annotated[
    dict[HeaderName, Annotated[str | HeaderValue, PlainValidator(_header_value)]],
    AfterValidator(_distinct),
    Kind("table of texts", {"type": "object", "additionalProperties": {"type": ["string", "object"]}}),
]
