"""Whether memory stays flat."""

from tests.bench import rig
from tests.bench.line import Line

EVENTS = 200_000
PER_TRANSACTION = 500
INSERT = (
    "INSERT INTO webhookd.outbox (type, payload)"
    f" SELECT 'order.created', to_json(repeat('x', 1000)) FROM generate_series(1, {PER_TRANSACTION})"
)


async def memory(server: str) -> list[Line]:
    """Resident memory after 50,000 and after 200,000 deliveries; the first quarter fills pools and caches."""
    async with (
        rig.receiver() as url,
        rig.database(server, "memory") as (dsn, connection),
        rig.daemon(dsn, {"a": {"url": url + "/a", "events": ["*"]}}) as daemon,
    ):
        sizes = []
        for quarter in range(4):
            for _ in range(EVENTS // 4 // PER_TRANSACTION):
                await connection.execute(INSERT)
            await rig.until_recorded(connection, EVENTS // 4 * (quarter + 1))
            sizes.append(daemon.memory_info().rss / 2**20)
    return [
        Line("resident memory after 200,000 deliveries / after 50,000", sizes[-1] / sizes[0], "ratio", 1.1),
        Line("resident memory after 200,000 deliveries", sizes[-1], "MiB", 150.0),
    ]
