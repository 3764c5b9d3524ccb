"""What a role must be allowed in the schema, so that a daemon can run as it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from webhookd.store.database import Database
from webhookd.store.statements import QUERIES

WRITTEN: Final[Mapping[str, str]] = {  # as sql/grants.sql has it; what is not here is read only
    "outbox": "INSERT",
    "attempt": "INSERT",
    "audit": "INSERT",
    "statistic": "INSERT",
    **dict.fromkeys(
        (
            "batch",
            "remainder",
            "surplus",
            "scheduled",
            "backlog",
            "binding",
            "endpoint",
            "parked",
            "missed",
            "replay",
            "consumer",
        ),
        "INSERT UPDATE DELETE",
    ),
    **dict.fromkeys(("daemon", "downtime", "secret", "sealed", "unreadable"), "INSERT UPDATE DELETE"),
    **dict.fromkeys(("shot", "discard", "tenant", "token", "request", "event_alias"), "INSERT UPDATE"),
    "event_type": "INSERT UPDATE DELETE",
    "consent": "INSERT DELETE",
    "config_version": "UPDATE",
    "lock_log": "UPDATE",
    "lock_endpoints": "UPDATE",
}
READ: Final = ("schema_version", "lock_tables", "cipher", "statistic_hour", "statistic_summed")
NOT_OURS: Final = ("emit", "erase", "rebase")  # functions that no daemon calls
MANY: Final = 10  # objects, so that nothing was granted at all, and these are but examples
EXAMPLES: Final = 3


class Lacking(NamedTuple):
    """What a role may not do that a daemon has to, in the words of SQL."""

    what: str  # such as `webhookd.batch`
    rights: tuple[str, ...]

    def sentence(self, role: str) -> str:
        """What it lacks, and what to do."""
        rights = ", ".join(self.rights)
        return f"{role} lacks {rights} on {self.what}: GRANT {rights} ON {self.what} TO {role};"


class Rights(NamedTuple):
    """What a role lacks of what a daemon needs; `only_reads` when it was never meant to run one."""

    role: str  # as SQL has it
    lacking: tuple[Lacking, ...]
    only_reads: bool

    def sentences(self) -> Iterator[str]:
        """What to grant, by the object, and how to grant all of it."""
        shown = self.lacking if len(self.lacking) <= MANY else self.lacking[:EXAMPLES]
        yield from (each.sentence(self.role) for each in shown)
        if more := len(self.lacking) - len(shown):
            yield f"and {more} more of the kind"
        yield "`webhookd grants --sql` prints all that the roles need, for the owner of the schema to run"


async def rights(database: Database) -> Rights:
    """What the role that we are lacks, by the catalogs alone, which everybody may read."""
    wanted = {**{name: "SELECT" for name in READ}, **{name: f"SELECT {what}" for name, what in WRITTEN.items()}}
    rows = await database.fetch(QUERIES["rights"], list(wanted), list(wanted.values()), NOT_OURS)
    return judged(rows)


def judged(rows: Sequence[Any]) -> Rights:
    """What the rows mean: role, kind, object, right, and whether it is there."""
    lacking: dict[str, list[str]] = {}
    for row in rows:
        if not row["granted"]:
            lacking.setdefault(row["what"], []).append(row["name"])
    may = {(row["kind"], row["name"] == "SELECT") for row in rows if row["granted"]}
    reads = ("schema", False) in may and ("table", True) in may and ("table", False) not in may
    role = rows[0]["role"] if rows else ""
    return Rights(role, tuple(Lacking(what, tuple(names)) for what, names in lacking.items()), reads)
