"""What tests plant where secrets, tokens and payloads belong, and what is searched for it: all logs and all tables."""

import base64

import asyncpg

SECRET = "whsec_" + base64.b64encode(b"PLANTED-secret-of-integration-tests").decode()
MARKS = ("PLANTED", base64.b64encode(b"PLANTED").decode()[:9])  # also in base64, whatever follows

# Payloads are in the outbox, and the start of a failed answer is in a column of its own.
_TEXTS = r"""
SELECT table_name, string_agg(quote_ident(column_name) || '::text', ', ' ORDER BY ordinal_position) AS columns
  FROM information_schema.columns
 WHERE table_schema = 'webhookd' AND table_name !~ '^outbox' AND table_name !~ '^attempt_'
   AND (table_name, column_name) <> ('attempt', 'response')
 GROUP BY table_name"""


async def question(connection: "asyncpg.Connection[asyncpg.Record]") -> str:
    """The query that names the tables in which a mark has come up."""
    anything = ", ".join(f"'%{mark}%'" for mark in MARKS)
    return " UNION ALL ".join(
        f"SELECT '{table}' WHERE EXISTS (SELECT FROM webhookd.{table} "
        f"WHERE concat_ws(' ', {columns}) LIKE ANY (ARRAY[{anything}]))"
        for table, columns in await connection.fetch(_TEXTS)
    )


def said_in(*texts: str) -> list[str]:
    """The lines in which a mark has come up."""
    return [line for text in texts for line in text.splitlines() if any(mark in line for mark in MARKS)]
