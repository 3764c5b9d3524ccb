"""What the configuration can hold, told from its models: as JSON Schema for editors, as a page for people.

`python -m webhookd.config.reference > docs/configuration.md` writes the page.
"""

import json
import sys
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import models_json_schema

from webhookd.config.checks import NAME, Kind
from webhookd.config.environment import variable
from webhookd.config.mistakes import LATER, table_in
from webhookd.config.named import NAMED, SECRETS
from webhookd.config.schema import SECTIONS, DisableAfter, Retry, Shape

_PAGE: Final = """\
<!-- Made by `python -m webhookd.config.reference` from schema.py and named.py beside it; change those. -->

# Configuration

The main file is the one that `--config` names, else `$WEBHOOKD_CONFIG`, else `/etc/webhookd/webhookd.toml`, else
`config/webhookd.toml`. Endpoints stand in it, or in the `*.toml` files of its endpoints directory. `webhookd check`
tells every mistake in them at once (of more than 100, the first 100), each with file, line and key, and then what they
change for the daemons; `webhookd check --offline` asks no database, and `webhookd check --schema` prints a JSON Schema.

Times are `"500ms"`, `"20s"`, `"5m"`, `"6h"` or `"3d"`; sizes are `"512KiB"`, `"1MiB"`, `"10MB"` or a number of bytes. A
variable of the environment replaces the key of the main file; lists have commas there,
`10.20.0.0/16,fd00::/8`, or are as in the file, `[{ id = "2026", file = "webhookd.key" }]`.

## Files

* A configuration file is at most 8 MiB, a file with a secret at most 64 KiB; both are UTF-8.
* Blanks and newlines around a secret in a file, a variable or a credential are no part of it.
* A file that everyone may write is refused, as whoever writes it decides where events go: `chmod o-w FILE`.
  So is one that a group may write which webhookd is not in, one whose owner is neither root nor the user that
  webhookd runs as, and one in such a folder. On a volume of a container its owner and group count as root's.
* In the endpoints directory hidden names are no endpoint files, and links must not lead out of the directory. Volumes
  of Kubernetes are fine: `orders.toml` → `..data/orders.toml`, where `..data` is a link to a directory beside it.
* A relative path starts at the folder of the file that names it.
"""

_COLUMNS: Final = ("Key", "Type", "Default", "Environment", "")
_WITHOUT_ENVIRONMENT: Final = ("Key", "Type", "Default", "")


def json_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of the main file, endpoints included; those of the endpoints directory are part of it."""
    models = [*SECTIONS.values(), *NAMED.values()]
    _, schema = models_json_schema([(model, "validation") for model in models], ref_template="#/$defs/{model}")
    for model in models:
        for name, field in model.model_fields.items():
            properties = schema["$defs"][model.__name__]["properties"]
            key = field.alias or name
            properties[key] = _tidy(properties[key], _default(field))
    tables: dict[str, Any] = {name: _reference(model) for name, model in SECTIONS.items()}
    for name, model in NAMED.items():
        names = {} if name == "event_types" else {"propertyNames": {"pattern": f"^{NAME}$"}}
        tables[name] = {"type": "object", "additionalProperties": _reference(model), **names}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "webhookd",
        "description": "Configuration of webhookd, the webhook delivery daemon",
        "type": "object",
        "properties": tables,
        "additionalProperties": False,
        "$defs": schema["$defs"],
    }


def page() -> str:
    """docs/configuration.md: every section and key, in Markdown."""
    parts = [_PAGE]
    for name, model in SECTIONS.items():
        parts += [f"## `[{name}]`\n", f"{model.__doc__}\n", _table(_rows(model, name), _COLUMNS)]
    for name, model in NAMED.items():
        title = '[event_types."order.created"]' if name == "event_types" else f"[{name}.NAME]"
        parts += [f"## `{title}`\n", f"{model.__doc__}\n"]
        parts.append(_table(_rows(model), _WITHOUT_ENVIRONMENT))
        if name == "endpoint":
            ways = ", ".join(f"`{key}`" for key in SECRETS)
            parts.append(f"An endpoint has exactly one of {ways}, unless `signature` is `none`.\n")
        for key, field in model.model_fields.items():
            inner = table_in(field.annotation)
            if inner is not None and inner is not Retry:  # which is the section of that name
                parts += [f"### `[{name}.NAME.{key}]`\n", f"{inner.__doc__}\n"]
                parts.append(_table(_rows(inner), _WITHOUT_ENVIRONMENT))
    parts += [
        "## Not there yet\n",
        "These are refused by this version with a sentence that says so:",
        ", ".join(f"`{_path(path)}`" for path in sorted(LATER)) + ".\n",
    ]
    return "\n".join(parts)


def _path(path: tuple[str, ...]) -> str:
    return f"[{path[0]}]" if len(path) == 1 else f"[{path[0]}{'.NAME' if path[0] in NAMED else ''}] {path[1]}"


def _tidy(schema: dict[str, Any], default: Any) -> dict[str, Any]:
    """A key's schema as an editor of TOML needs it, which has no null."""
    choices = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    found = {**schema, **choices[0]} if len(choices) == 1 else dict(schema)
    for word in ("title", "default", "anyOf" if len(choices) == 1 else ""):
        found.pop(word, None)
    if found.get("type") == "array":  # pydantic counts what is checked before it is a tuple as characters
        for bound in ("min", "max"):
            if f"{bound}Length" in found:
                found[f"{bound}Items"] = found.pop(f"{bound}Length")
    return found if default is None else {**found, "default": default}


def _reference(model: type[Shape]) -> dict[str, str]:
    return {"$ref": f"#/$defs/{model.__name__}"}


def _rows(model: type[BaseModel], section: str = "") -> Iterator[tuple[str, ...]]:
    for key, field in model.model_fields.items():
        default = _default(field)
        shown = "" if default is None else f"`{json.dumps(default)}`"
        named = (f"`{variable(section, key)}`",) if section else ()
        yield (
            f"`{field.alias or key}`",
            _word(field.annotation, field.metadata),
            "required" if field.is_required() else shown,
            *named,
            str(field.description),
        )


def _table(rows: Iterator[tuple[str, ...]], columns: tuple[str, ...]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _default(field: FieldInfo) -> Any:
    """A key's default as a file would have it, "20s" and not 20.0; None where it would not say anything."""
    value = field.default
    if field.is_required() or value in (None, {}, Retry(), DisableAfter()) or not field.repr:
        return None
    kind = next((each for each in field.metadata if isinstance(each, Kind)), None)
    if kind:
        return kind.written(value)
    return list(value) if isinstance(value, tuple) else value


def _word(annotation: Any, metadata: Any = ()) -> str:
    """What may stand there, in a few words."""
    if get_origin(annotation) is Annotated:
        return _word(annotation.__origin__, annotation.__metadata__)
    for each in metadata:
        if isinstance(each, Kind):
            return each.word
    if get_origin(annotation) in (Union, UnionType):
        return _word(next(each for each in get_args(annotation) if each is not type(None)))
    if get_origin(annotation) is Literal:
        return " or ".join(json.dumps(each) for each in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list: {_word(get_args(annotation)[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    low = next((each.ge for each in metadata if isinstance(each, annotated_types.Ge)), None)
    high = next((each.le for each in metadata if isinstance(each, annotated_types.Le)), None)
    bounds = f", {low} to {high}" if high is not None else ""
    return {bool: "true or false", int: "whole number", float: "number"}.get(annotation, "text") + bounds


if __name__ == "__main__":
    sys.stdout.write(page())
