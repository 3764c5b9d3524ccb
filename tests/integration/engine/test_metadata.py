"""Metadata of any size is matched, sent, and held in memory as payloads are."""

import json

import pytest

from tests.integration.conftest import Receiver, Running, Sql, configuration, finished


@pytest.mark.parametrize("size", [10, 5_000, 200_000])
async def test_metadata_of_any_size_is_matched_and_sent(
    sql: Sql, receiver: Receiver, daemon: Running, size: int
) -> None:
    """Also of rows that are older than its bound."""
    if bound := await sql.fetchval("SELECT conname FROM pg_constraint WHERE conname LIKE 'metadata may%' LIMIT 1"):
        await sql.execute(f'ALTER TABLE webhookd.outbox DROP CONSTRAINT "{bound}"')
    config = configuration(
        {
            "eu": {
                "url": receiver.url("eu"),
                "filter": {"region": ["eu"]},
                "format": "cloudevents-binary",
            },
            "us": {"url": receiver.url("us"), "filter": {"region": ["us"]}},
        }
    )
    metadata = json.dumps({"region": "eu", "subject": "order-7", "text": "x" * size})
    async with daemon(config):
        await sql.execute(
            "INSERT INTO webhookd.outbox (type, payload, metadata) VALUES ('order.created', '{}', $1)", metadata
        )
        await finished(sql)
    assert len(receiver.events("eu")) == 1
    assert receiver.events("us") == []
    assert receiver.got[0].headers["ce-subject"] == "order-7"
