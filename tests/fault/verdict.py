"""What a run did to its events: one judgement for good daemons, who must pass it, and for broken ones, who must not."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import TypeAlias

import asyncpg

from tests.fault.fleet import Receipt
from tests.waiting import HANGS, until

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

NOTHING: Mapping[str, str] = MappingProxyType({})
ROLES = ("daemon_1", "daemon_2", "daemon_3")

DEAD_AFTER = 1.5  # seconds, at a tenth of the pace

# Deliveries that somebody has begun, perhaps, and when others could: all of a batch that was taken from a daemon which
# had not been heard of for so long, and what was claimed because the lease of who had it was over.
PASSED_ON = """
SELECT NULL AS path, o.event_id, extract(epoch FROM t.at)::float8 AS at
  FROM audit.taken t JOIN webhookd.batch b ON b.id = t.batch_id JOIN webhookd.outbox o ON o.id = ANY (b.outbox_ids)
 WHERE t.from_owner <> t.to_owner AND t.silent >= $1
UNION ALL
SELECT '/' || replace(p.name, '-', '/'), o.event_id, extract(epoch FROM again.at)::float8
  FROM audit.leased l
  JOIN audit.leased again ON (again.endpoint_id, again.outbox_id, again.ended) = (l.endpoint_id, l.outbox_id, l.ends)
  JOIN webhookd.endpoint p ON p.id = l.endpoint_id JOIN webhookd.outbox o ON o.id = l.outbox_id"""
WRITTEN = "SELECT id, event_id, payload::text FROM webhookd.outbox WHERE type NOT LIKE 'webhookd.%'"  # by applications

# Who ended, took or rewound what: each daemon of a test has a role of its own, so the tables themselves can tell.
AUDIT = """
CREATE SCHEMA audit;
CREATE TABLE audit.daemon AS SELECT 0 AS id, ''::name AS role WHERE false;
CREATE TABLE audit.ended (batch_id bigint, owner int, role name);
CREATE TABLE audit.taken (batch_id bigint, from_owner int, to_owner int, claims int, silent interval, at timestamptz);
CREATE TABLE audit.leased (endpoint_id int, outbox_id bigint, ended timestamptz, ends timestamptz, at timestamptz);
CREATE TABLE audit.rewound (endpoint_id int, outbox_id bigint, was int, is_now int, role name);
CREATE FUNCTION audit.joined() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO audit.daemon VALUES (NEW.id, session_user); RETURN NULL; END $$;
CREATE FUNCTION audit.ended() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO audit.ended VALUES (NEW.id, NEW.owner, session_user); RETURN NULL; END $$;
CREATE FUNCTION audit.taken() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO audit.taken SELECT NEW.id, OLD.owner, NEW.owner, NEW.claims,
     (SELECT CASE WHEN d.stopped_at IS NULL THEN clock_timestamp() - d.beat_at ELSE interval '1 day' END
        FROM webhookd.daemon d WHERE d.id = OLD.owner), clock_timestamp();
     RETURN NULL; END $$;
CREATE FUNCTION audit.leased() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO audit.leased VALUES (NEW.endpoint_id, NEW.outbox_id,
     CASE WHEN TG_OP = 'UPDATE' THEN OLD.due END, NEW.due, clock_timestamp()); RETURN NULL; END $$;
CREATE FUNCTION audit.rewound() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO audit.rewound VALUES (NEW.endpoint_id, NEW.outbox_id, OLD.attempts, NEW.attempts, session_user);
     RETURN NULL; END $$;
CREATE TRIGGER joined AFTER INSERT ON webhookd.daemon FOR EACH ROW EXECUTE FUNCTION audit.joined();
CREATE TRIGGER ended AFTER UPDATE ON webhookd.batch FOR EACH ROW
  WHEN (OLD.done_at IS NULL AND NEW.done_at IS NOT NULL) EXECUTE FUNCTION audit.ended();
CREATE TRIGGER taken AFTER UPDATE ON webhookd.batch FOR EACH ROW
  WHEN (OLD.claims <> NEW.claims) EXECUTE FUNCTION audit.taken();
-- A claim of the retrier, the end of what who died had leased, and what may be the lease of a delivery in flight.
CREATE TRIGGER claimed AFTER UPDATE ON webhookd.backlog FOR EACH ROW
  WHEN (current_query() LIKE ANY (ARRAY['%FROM pick p%', '%leased AS MATERIALIZED%'])) EXECUTE FUNCTION audit.leased();
CREATE TRIGGER leased AFTER INSERT ON webhookd.backlog FOR EACH ROW
  WHEN (NEW.attempts = 0 AND NEW.state = 'retry' AND NEW.due > now()) EXECUTE FUNCTION audit.leased();
CREATE TRIGGER rewound AFTER UPDATE ON webhookd.backlog FOR EACH ROW
  WHEN (NEW.attempts < OLD.attempts) EXECUTE FUNCTION audit.rewound();
"""


async def audit(sql: Connection) -> None:
    """Let the database watch the daemons that will connect as ROLES."""
    for role in ROLES:
        if not await sql.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = $1", role):
            await sql.execute(f"CREATE ROLE {role} LOGIN SUPERUSER")
    await sql.execute(AUDIT)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many of each there were; all but `receipts` and `duplicates` that are explained are faults."""

    receipts: int  # 2xx answers of the receiver
    lost: int  # committed, and not received by an endpoint
    phantom: int  # received without a commit, or recorded as delivered without a receipt
    duplicates: int  # 2xx answers beyond the first of an event at an endpoint
    unexplained: int  # of these, those that at least once does not allow: see `unexplained`
    changed: int  # bodies that are not the stored payload, or not the same at each attempt
    foreign_ends: int  # batches ended by a daemon that did not own them
    rewinds: int  # rows of the backlog set back to fewer attempts
    misread: int  # events that are in no batch, or in more than one

    @property
    def duplicate_share(self) -> float:
        """Duplicates per delivery."""
        return self.duplicates / max(self.receipts - self.duplicates, 1)

    @property
    def faults(self) -> set[str]:
        """The names of what must not be."""
        return {
            name
            for name in ("lost", "phantom", "changed", "unexplained", "foreign_ends", "rewinds", "misread")
            if getattr(self, name)
        }


async def judge(
    sql: Connection,
    committed: Mapping[str, str],
    receipts: Sequence[Receipt],
    endpoints: Sequence[str],
    *,
    gone: Mapping[str, str] = NOTHING,
) -> Verdict:
    """Hold what was received against what was committed and against what was recorded.

    `gone` was committed, too, and is lost with a server: it may have been received.
    """
    rows = await sql.fetch(WRITTEN)
    stored = {row["event_id"]: row["payload"] for row in rows}
    assert stored == dict(committed), "the writers and the outbox disagree about what was committed"
    good = Counter((receipt.path, receipt.id) for receipt in receipts if 200 <= receipt.status < 300)
    answered = Counter((r.path, r.id, r.attempt) for r in receipts if 200 <= r.status < 300)
    # Each row of the log is one request of its own; one of an event that is not there has no receipt at all.
    recorded = await sql.fetch(
        "SELECT '/' || replace(p.name, '-', '/') AS path, o.event_id, a.attempt FROM webhookd.attempt a"
        " JOIN webhookd.endpoint p ON p.id = a.endpoint_id LEFT JOIN webhookd.outbox o ON o.id = a.outbox_id WHERE a.ok"
    )
    unanswered = Counter(tuple(row) for row in recorded) - answered
    cut = Counter(id_ for (ids,) in await sql.fetch("SELECT outbox_ids FROM webhookd.batch") for id_ in ids)
    return Verdict(
        receipts=good.total(),
        lost=sum((f"/{path}", event_id) not in good for path in endpoints for event_id in committed),
        phantom=len({r.id for r in receipts} - committed.keys() - gone.keys()) + unanswered.total(),
        duplicates=good.total() - len(good),
        unexplained=await unexplained(sql, receipts),
        changed=changed({**gone, **committed}, receipts),
        foreign_ends=await sql.fetchval(
            "SELECT count(*) FROM audit.ended e LEFT JOIN audit.daemon d ON d.id = e.owner"
            " WHERE d.role IS DISTINCT FROM e.role"
        ),
        rewinds=await sql.fetchval("SELECT count(*) FROM audit.rewound"),
        misread=sum(cut[row["id"]] != 1 for row in rows),
    )


async def passings(sql: Connection) -> Callable[[str, str], list[float]]:
    """When the delivery of an event to a path was passed on to another daemon, while the one that had it may live.

    A daemon that could not beat for DEAD_AFTER, or is known to have died, is dead to the others: with nothing but a
    network between them nobody can know better. So its batches are others' then, as a delivery is whose lease is over,
    and what it has sent of them and not recorded is sent once more. There is no other reason to do that.
    """
    found: defaultdict[tuple[str | None, str], list[float]] = defaultdict(list)
    for path, event_id, at in await sql.fetch(PASSED_ON, timedelta(seconds=DEAD_AFTER)):
        found[path, event_id].append(at)
    return lambda path, event_id: [*found[path, event_id], *found[None, event_id]]


async def unexplained(sql: Connection, receipts: Sequence[Receipt]) -> int:
    """Duplicates that at least once does not allow: each takes a passing before the last answer."""
    passed_on = await passings(sql)
    answered: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for receipt in receipts:
        if 200 <= receipt.status < 300:
            answered[receipt.path, receipt.id].append(receipt.at)
    return sum(
        max(len(moments) - 1 - sum(at < max(moments) for at in passed_on(*delivery)), 0)
        for delivery, moments in answered.items()
    )


def changed(committed: Mapping[str, str], receipts: Sequence[Receipt]) -> int:
    """Receipts whose body is not that of the event, and events that came with several bodies."""
    hashes = {id_: hashlib.sha256(text.encode()).hexdigest() for id_, text in committed.items()}
    bodies: defaultdict[str, set[str]] = defaultdict(set)
    for receipt in receipts:
        bodies[receipt.id].add(receipt.body)
    wrong = sum(receipt.data != hashes.get(receipt.id, receipt.data) for receipt in receipts)
    return wrong + sum(len(seen) > 1 for seen in bodies.values())


async def settled(sql: Connection) -> bool:
    """Nothing is owed: all is cut, every batch has ended, nothing waits for another attempt, no cursor is behind."""
    return bool(
        await sql.fetchval(
            "SELECT NOT EXISTS (SELECT FROM webhookd.batch WHERE done_at IS NULL)"
            " AND NOT EXISTS (SELECT FROM webhookd.backlog WHERE state = 'retry')"
            " AND NOT EXISTS (SELECT FROM webhookd.parked"
            "                  WHERE next_batch < COALESCE(to_batch, (SELECT max(id) + 1 FROM webhookd.batch)))"
            " AND (SELECT count(*) FROM webhookd.outbox)"
            " <= (SELECT COALESCE(sum(cardinality(outbox_ids)), 0) FROM webhookd.batch)"
        )
    )


async def wait_until_settled(sql: Connection, seconds: float = HANGS) -> bool:
    """False when something is still owed after `seconds`; the judgement then says what."""
    try:
        return await until(lambda: settled(sql), "everything is settled", seconds, 0.1)
    except AssertionError:
        return False
