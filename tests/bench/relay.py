"""The shortest way from a COMMIT to a receiver: LISTEN, SELECT one row, POST it; nothing is written, nothing guarded.

`python -m tests.bench.relay DSN URL` prints a line when it listens.
"""

import asyncio
import sys
from typing import Any

import aiohttp
import asyncpg
import uvloop

from tests.bench.bare import signed

CHANNEL = "relay"
TABLE = "CREATE TABLE public.relay (id text PRIMARY KEY DEFAULT gen_random_uuid()::text, payload json NOT NULL)"
INSERT = """
    WITH made AS (INSERT INTO public.relay (payload) VALUES (to_json(repeat('x', 1000))) RETURNING id)
    SELECT id, pg_notify('relay', id) FROM made
"""


async def main(dsn: str, url: str) -> None:
    """Relay until killed."""
    listening, asking = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    one_at_a_time = asyncio.Lock()  # as a connection answers
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:

        async def relay(event_id: str) -> None:
            async with one_at_a_time:
                payload = await asking.fetchval("SELECT payload::text FROM public.relay WHERE id = $1", event_id)
            body = payload.encode()
            async with session.post(url, data=body, headers=signed(event_id, body)) as response:
                await response.read()

        def heard(_connection: Any, _pid: int, _channel: str, event_id: object) -> None:
            group.create_task(relay(str(event_id)))

        await listening.add_listener(CHANNEL, heard)
        print("listens", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], sys.argv[2]))
