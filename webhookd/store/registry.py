"""Who is alive, and which endpoints there are."""

import asyncio
import hashlib
import json
from array import array
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, NamedTuple

from webhookd.errors import OtherPlace, StoreRefused, StoreUnavailable
from webhookd.message.kept import Kept
from webhookd.policy.difference import Specs
from webhookd.policy.liveness import Process
from webhookd.policy.matching import ANY_TENANT
from webhookd.policy.members import Member
from webhookd.store import endpoints, tenants
from webhookd.store.database import Database
from webhookd.store.statements import QUERIES

FIRST: tuple[int, int] | None = (-1, 0)  # a version and a number, before all
FAR = 2**31 - 1  # behind every number of an endpoint
MANY = 100  # endpoints that have changed, from which on all are read
AGREED_WITHIN = 5  # tries
USED_WITHIN = 7 * 86_400.0  # seconds: for whom nobody has asked since is missed by nobody
DOWNTIME_AFTER = 60.0  # seconds without any daemon's heartbeat that deliveries get back


class Beat(NamedTuple):
    """What a heartbeat learns: whether the database still knows us, who else is alive, and when nobody was."""

    now: float
    known: bool
    members: tuple[Member, ...]
    downtimes: tuple[tuple[float, float], ...]


class Known(NamedTuple):
    """The endpoints that are there: the numbers of ours, in the order they were named, and the others."""

    ids: Sequence[int]
    others: Sequence[Kept]  # of the API, and of others' files
    version: int  # as of which this is all


class Joined(NamedTuple):
    """A new daemon: an id that was never used before, and the batch up to which everything is done."""

    daemon_id: int
    low: int
    has_company: bool  # another daemon is alive
    known: Known


class Reload(NamedTuple):
    """What a daemon made of its files: it runs on `config_hash`, and kept it because of `problem`, or took it."""

    daemon: int
    host: str
    config_hash: str
    problem: str | None


class StillThere(NamedTuple):
    """An endpoint, by its label, that these daemons still have in their files."""

    label: str
    daemons: Sequence[int]
    hosts: Sequence[str]


class Registry:
    """What the janitor and the daemon ask about daemons, partitions and endpoints."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.keys: Sequence[str] = ()  # names of those by which we open what the API has made
        self._sets: dict[str, frozenset[int]] = {}  # of endpoints, by their hash

    async def bind(self, environment: str) -> str:
        """The answer of `webhookd.place()`, once this database is known to belong here.

        OtherPlace when it is a copy, or is of another environment: nothing that it owes may be sent.
        """
        bound = await self._database.fetch(QUERIES["bound"])
        if not bound or not bound[0]["environment"]:
            await self._database.fetch(QUERIES["bind"], environment)
        return await self.expect_ours(environment)

    async def expect_ours(self, environment: str) -> str:
        """The same, but what is not bound to any environment yet stays so."""
        place = ""
        for server, bound, place in await self._database.fetch(QUERIES["bound"]):
            here = place.partition("/")[0]
            if server != here or bound not in ("", environment):
                raise OtherPlace(_other_place(server, bound or environment, here, environment))
        return place

    async def has_endpoints(self) -> bool:
        """True when the files of some daemon, alive or not, have had an endpoint that nobody has removed."""
        return bool((await self._database.fetch_row(QUERIES["has_endpoints"]))[0])

    async def join(
        self,
        host: str,
        version: str,
        specs: Specs,
        config_hash: str,
        dead_after: float,
        process: Process | None = None,
    ) -> Joined:
        """Become a daemon that runs on these endpoints of its files, which are written; all or nothing.

        It is alive from now on, and counts among those that share limits from its first heartbeat on.
        """
        tenants, names, texts = await asyncio.to_thread(_columns, specs)  # thousands of them would stall the loop
        async with self._locked() as connection:
            await connection.execute(QUERIES["downtime"], DOWNTIME_AFTER)
            changed = await connection.execute(QUERIES["sync_endpoints"], tenants, names, texts)
            ids = await connection.fetchval(QUERIES["own_endpoints"], tenants, names) or []
            who = process or (None, None, None)
            said = host, version, config_hash, *_own(specs, ids), list(self.keys)
            row = await connection.fetchrow(QUERIES["register"], *said, dead_after, *who)
            await self._agree(connection, tenants, names, config_hash, dead_after, changed=_rows(changed) > 0)
        await self._follow_files(specs)
        return Joined(row[0], row[1], row[2], await self.known(specs, ids, config_hash, dead_after))

    async def beat(
        self, daemon: int, low: int, dead_after: float, listen_pid: int | None = None, problem: str | None = None
    ) -> Beat:
        """Say that we are alive, and what keeps us from our work.

        `dead_after`: seconds of silence after which another daemon counts as dead.
        """
        await self._database.fetch(QUERIES["downtime"], DOWNTIME_AFTER)
        row = await self._database.fetch_row(QUERIES["beat"], daemon, low, dead_after, listen_pid, problem)
        now, known, ids, hashes, keys, down_from, down_to = row
        await self._learn_sets({hash_ for hash_ in hashes if hash_ is not None})
        members = tuple(
            Member(id_, self._sets.get(hash_), None if names is None else frozenset(names.split("\n")) - {""})
            for id_, hash_, names in zip(ids, hashes, keys, strict=True)
        )
        return Beat(now, known, members, tuple(zip(down_from, down_to, strict=True)))

    async def _learn_sets(self, hashes: set[str]) -> None:
        """Know the endpoints behind these hashes, and no others."""
        self._sets = {hash_: ids for hash_, ids in self._sets.items() if hash_ in hashes}
        if new := hashes - self._sets.keys():
            rows = await self._database.fetch(QUERIES["endpoint_sets"], list(new))
            self._sets |= {row[0]: frozenset(row[1]) for row in rows}

    async def hindered(self, daemon: int, problem: str) -> None:
        """Show what keeps this daemon from its work, where a heartbeat cannot."""
        await self._database.fetch(QUERIES["hindered"], daemon, problem)

    async def low(self, low: int) -> int:
        """The last batch before which everything is done, looked for from `low`."""
        return int((await self._database.fetch_row(QUERIES["low"], low))[0])

    async def neighbours(self, machine: str, daemon: int) -> list[tuple[int, Process]]:
        """The other daemons of this machine that are not known to have stopped, by their ids."""
        rows = await self._database.fetch(QUERIES["neighbours"], machine, daemon)
        return [(row[0], Process(row[1], row[2], row[3])) for row in rows]

    async def bury(self, daemons: Sequence[int], longest_lease: float) -> list[int]:
        """Know these daemons to be dead, so that all they had in hand is free at once; those that nobody had buried."""
        buried = [row[0] for row in await self._database.fetch(QUERIES["bury"], daemons)]
        if buried:
            await self._database.fetch(QUERIES["end_leases"], buried, longest_lease)
        return buried

    async def silence(self, daemon: int, dead_after: float) -> int:
        """End the listening connections of daemons that are dead or stopped; how many there were."""
        return len(await self._database.fetch(QUERIES["silence"], daemon, dead_after))

    async def leave(self, daemon: int) -> None:
        """Stop counting as alive."""
        await self._database.fetch(QUERIES["leave"], daemon)

    async def maintain(self, events: float, attempts: float, *, large: bool = False) -> list[tuple[str, str | None]]:
        """Do a piece of what keeps the tables in shape; what was done, or what could not be done and why not.

        `events` and `attempts` are the seconds for which they are kept. `large`: also what INSERTs wait for.
        """
        try:
            moved = [(row[0], row[1]) for row in await self._database.fetch(QUERIES["move_consumers"], events)]
            self._database.tally.missed_events += len(moved)
        except (StoreRefused, StoreUnavailable) as error:  # which retention must not wait for
            moved = [("consumers", f"those that lag cannot be moved: {error}")]
        rows = await self._database.fetch(QUERIES["maintain"], events, attempts, large)
        return [*moved, *((row["done"], row["problem"]) for row in rows)]

    async def sweep(self, events: float) -> int:
        """Delete rows that nothing refers to any longer, and forget daemons that stopped long ago; how many went."""
        await self._database.fetch(QUERIES["forget_daemons"])
        await self._database.fetch(QUERIES["forget_requests"])
        await self._database.fetch(QUERIES["forget_consumers"])
        gone = int((await self._database.fetch_row(QUERIES["sweep"], events))[0])
        more = (await self._database.fetch_row(QUERIES["statistics_sum_up"], events))[0]
        return gone + int(more)

    async def lagging(self, seconds: float) -> dict[int, float]:
        """Numbers of the endpoints whose cursor is that far behind, and how far."""
        cursors = await self._database.fetch(QUERIES["lagging"], seconds)
        consumers = await self._database.fetch(QUERIES["consumers_lagging"], seconds, USED_WITHIN)
        return {row[0]: row[1] for row in (*cursors, *consumers)}

    async def versions(self) -> tuple[int, int]:
        """How often endpoints have changed, and how often a reload was asked for."""
        row = await self._database.fetch_row(QUERIES["versions"])
        return row[0], row[1]

    async def sync_endpoints(self, daemon: int, specs: Specs, config_hash: str, dead_after: float) -> Known:
        """Write the endpoints of the files to the database, as what this daemon runs on; all that are there."""
        tenants, names, texts = await asyncio.to_thread(_columns, specs)  # thousands of them would stall the loop
        async with self._locked() as connection:
            changed = await connection.execute(QUERIES["sync_endpoints"], tenants, names, texts)
            ids = await connection.fetchval(QUERIES["own_endpoints"], tenants, names) or []
            await connection.fetch(QUERIES["loaded"], daemon, config_hash, *_own(specs, ids), list(self.keys))
            await self._agree(connection, tenants, names, config_hash, dead_after, changed=_rows(changed) > 0)
        await self._follow_files(specs)
        return await self.known(specs, ids, config_hash, dead_after)

    async def agree(self, specs: Specs, config_hash: str, dead_after: float) -> None:
        """Count as removed what no live daemon has in its files, and as there what is in ours."""
        tenants, names = await asyncio.to_thread(_keys, specs.keys())
        async with self._locked() as connection:
            await self._agree(connection, tenants, names, config_hash, dead_after)

    async def known(self, specs: Specs, ids: Sequence[int], config_hash: str, dead_after: float) -> Known:
        """All endpoints that are there; those with these numbers are of our files, and are there as well."""
        for _ in range(AGREED_WITHIN):
            others, version, after = list[Kept](), 0, FIRST
            async with self._database.transaction(isolation="repeatable_read", readonly=True) as connection:
                lost = await connection.fetchval(QUERIES["endpoints_lost"], ids)
                while after is not None:
                    version, page, after = await endpoints.page_of_changes(connection, after, ids)
                    others += page
            if not lost:
                return Known(ids, others, version)
            await self.agree(specs, config_hash, dead_after)  # somebody has taken us for dead
        raise StoreUnavailable("Another daemon takes this one for dead, again and again: look at its clock and load.")

    async def changes(self, since: int) -> tuple[int, list[Kept]] | None:
        """Which endpoints have changed since that version, and as of which; None when they are many."""
        version, found, more = await endpoints.page_of_changes(self._database, (since, FAR), most=MANY)
        return None if more else (version, found)

    async def reload_refused(self, daemon: int, problem: str) -> None:
        """Show that this daemon kept its old configuration, and why."""
        await self._database.fetch(QUERIES["reload_refused"], daemon, problem)

    async def accepted_removals(self) -> frozenset[str]:
        """Labels of the endpoints whose removal an operator has accepted within the hour."""
        return frozenset(row[0] for row in await self._database.fetch(QUERIES["accepted_removals"]))

    async def accept_removals(self, labels: Sequence[str], who: str) -> None:
        """Let these endpoints go at the next reload."""
        await self._database.fetch(QUERIES["accept_removals"], list(labels), who)

    async def ask_for_reload(self) -> datetime:
        """Make every daemon read its files again; since when to look for what they make of it."""
        moment: datetime = (await self._database.fetch_row(QUERIES["ask_for_reload"]))[0]
        return moment

    async def reloads(self, since: datetime, dead_after: float) -> list[Reload]:
        """The live daemons that have read their files since then."""
        return [Reload._make(row) for row in await self._database.fetch(QUERIES["reloads"], since, dead_after)]

    async def kept(self, labels: Sequence[str], dead_after: float) -> list[StillThere]:
        """Those of these endpoints that count as before, since live daemons have them."""
        return [
            StillThere._make(row) for row in await self._database.fetch(QUERIES["kept_endpoints"], labels, dead_after)
        ]

    async def _follow_files(self, specs: Specs) -> None:
        """Have a tenant for each that files name, and those read with a cursor that keep an order.

        The latter before anybody sends to them as such, and in a transaction of its own: it takes the lock of the log,
        which others take before that of the endpoints.
        """
        if named := {tenant for tenant, _ in specs} - {"", ANY_TENANT}:
            await tenants.of_files(self._database, named)
        if any(spec.get("ordered") for spec in specs.values()):
            await self._database.fetch(QUERIES["park_ordered"])

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[Any]:
        async with self._database.transaction() as connection:
            await connection.fetch(QUERIES["sync_lock"])
            yield connection

    async def _agree(
        self, connection: Any, tenants: str, names: str, config_hash: str, dead_after: float, *, changed: bool = False
    ) -> None:
        """The same, and let all daemons look where anything has changed."""
        removed = await connection.execute(QUERIES["removed_endpoints"], tenants, names, config_hash, dead_after)
        returned = await connection.execute(QUERIES["returned_endpoints"], tenants, names)
        if changed or _rows(removed) or _rows(returned):
            await connection.fetch(QUERIES["raise_version"])


def _other_place(server: str, deployment: str, here: str, environment: str) -> str:
    found = [] if server == here else [f"it is on server {here} and was bound to {server}"]
    if deployment != environment:
        found.append(f'it belongs to environment "{deployment}", and [daemon] environment says "{environment}"')
    return (
        f"This database seems to be a copy: {', and '.join(found)}. So nothing is sent. Take it over with `webhookd "
        "migrate --rebase --owed=drop`, which forgets what is owed, as for staging; or with `--owed=deliver`, which "
        "sends it, as when a restore replaces the original."
    )


def _rows(tag: str) -> int:
    """How many rows a command changed, by its tag such as `UPDATE 3`."""
    return int(tag.rsplit(" ", 1)[1])


def _columns(specs: Specs) -> tuple[str, str, str]:
    return *_keys(specs), _array(json.dumps(spec, sort_keys=True) for spec in specs.values())


def _keys(pairs: Collection[tuple[str, str]]) -> tuple[str, str]:
    tenants, names = zip(*pairs, strict=True) if pairs else ((), ())
    return _array(tenants), _array(names)


def _array(texts: Iterable[str]) -> str:
    """An array as Postgres reads it: asyncpg would look at each element on the loop."""
    escaped = (text.replace("\\", "\\\\").replace('"', '\\"') for text in texts)
    return "{" + ",".join(f'"{text}"' for text in escaped) + "}"


def _is_sent_to(spec: Mapping[str, Any]) -> bool:
    return bool(spec["active"]) and spec.get("kind") != "poll"


def _hash(ids: Sequence[int]) -> str:
    return hashlib.sha256(array("q", ids).tobytes()).hexdigest()[:32]


def _own(specs: Specs, ids: Iterable[int]) -> tuple[list[int], list[int], str]:
    """What a daemon tells the others of the endpoints of its files: those it sends to, the others, and a hash."""
    pairs = sorted(zip(ids, map(_is_sent_to, specs.values()), strict=True))
    active = [id_ for id_, is_active in pairs if is_active]
    return active, [id_ for id_, is_active in pairs if not is_active], _hash(active)
