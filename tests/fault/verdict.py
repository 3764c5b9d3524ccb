"""What a run did to its events: one judgement for good daemons, who must pass it, and for broken ones, who must not."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import asyncpg

from tests.fault.fleet import Receipt
from tests.waiting import until

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

NOTHING: Mapping[str, str] = MappingProxyType({})
MOST_DUPLICATES = 0.01  # of the deliveries, at one kill each 2 s
ROLES = ("daemon_1", "daemon_2", "daemon_3")

WRITTEN = "SELECT id, event_id, payload::text FROM webhookd.outbox WHERE type NOT LIKE 'webhookd.%'"  # by applications

# Who ended, took or rewound what: each daemon of a test has a role of its own, so the tables themselves can tell.
AUDIT = """
CREATE SCHEMA audit;
CREATE TABLE audit.daemon AS SELECT 0 AS id, ''::name AS role WHERE false;
CREATE TABLE audit.ended (batch_id bigint, owner int, role name);
CREATE TABLE audit.taken (batch_id bigint, from_owner int, to_owner int, claims int, silent interval);
CREATE TABLE audit.rewound (endpoint_id int, outbox_id bigint, was int, is_now int, role name);
CREATE FUNCTION audit.joined() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO audit.daemon VALUES (NEW.id, session_user); RETURN NULL; END $$;
CREATE FUNCTION audit.ended() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO audit.ended VALUES (NEW.id, NEW.owner, session_user); RETURN NULL; END $$;
CREATE FUNCTION audit.taken() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO audit.taken SELECT NEW.id, OLD.owner, NEW.owner, NEW.claims,
     (SELECT clock_timestamp() - d.beat_at FROM webhookd.daemon d WHERE d.id = OLD.owner); RETURN NULL; END $$;
CREATE FUNCTION audit.rewound() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO audit.rewound VALUES (NEW.endpoint_id, NEW.outbox_id, OLD.attempts, NEW.attempts, session_user);
     RETURN NULL; END $$;
CREATE TRIGGER joined AFTER INSERT ON webhookd.daemon FOR EACH ROW EXECUTE FUNCTION audit.joined();
CREATE TRIGGER ended AFTER UPDATE ON webhookd.batch FOR EACH ROW
  WHEN (OLD.done_at IS NULL AND NEW.done_at IS NOT NULL) EXECUTE FUNCTION audit.ended();
CREATE TRIGGER taken AFTER UPDATE ON webhookd.batch FOR EACH ROW
  WHEN (OLD.claims <> NEW.claims) EXECUTE FUNCTION audit.taken();
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
    """How many of each there were; all but `receipts` and a few duplicates are faults."""

    receipts: int  # 2xx answers of the receiver
    lost: int  # committed, and not received by an endpoint
    phantom: int  # received without a commit, or recorded as delivered without a receipt
    duplicates: int  # 2xx answers beyond the first of an event at an endpoint
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
        found = {
            name for name in ("lost", "phantom", "changed", "foreign_ends", "rewinds", "misread") if getattr(self, name)
        }
        return found | ({"duplicates"} if self.duplicate_share > MOST_DUPLICATES else set())


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
        changed=changed({**gone, **committed}, receipts),
        foreign_ends=await sql.fetchval(
            "SELECT count(*) FROM audit.ended e LEFT JOIN audit.daemon d ON d.id = e.owner"
            " WHERE d.role IS DISTINCT FROM e.role"
        ),
        rewinds=await sql.fetchval("SELECT count(*) FROM audit.rewound"),
        misread=sum(cut[row["id"]] != 1 for row in rows),
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


async def wait_until_settled(sql: Connection, seconds: float) -> bool:
    """False when something is still owed after `seconds`; the judgement then says what."""
    try:
        return await until(lambda: settled(sql), "everything is settled", seconds, 0.1)
    except AssertionError:
        return False
