"""The daemon serves the API where it is told to, whatever becomes of the database."""

from aiohttp import ClientSession

from tests.integration.conftest import Receiver, Running, Sql, configuration, eventually
from tests.integration.web.conftest import Client, a_token
from tests.waiting import until
from webhookd.store.tokens import hash_of


async def test_what_it_is_sent_it_delivers(dsn: str, sql: Sql, receiver: Receiver, daemon: Running) -> None:
    config = configuration({"hook": {"url": receiver.url("hook")}}, api={"listen": "127.0.0.1:0"})
    async with daemon(config) as running, ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "producer"))
        made = await client("POST", "/app/default/msg", {"eventType": "order.created", "payload": {"n": 1}})
        await until(lambda: bool(receiver.got), "it")
    assert receiver.events("hook") == [made.body["id"]]


async def test_it_is_not_served_unless_it_is_to_listen(receiver: Receiver, daemon: Running) -> None:
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})) as running:
        assert running.api_url == ""


async def test_a_reload_changes_who_may(receiver: Receiver, daemon: Running) -> None:
    hook = {"hook": {"url": receiver.url("hook")}}
    token = "a-token-of-a-file-000"
    configs = [configuration(hook, api={"listen": "127.0.0.1:0"}), configuration(hook, api={"listen": "127.0.0.1:0"})]
    object.__setattr__(configs[1].api, "tokens_file", {hash_of(token): "read"})
    async with daemon(configs[0], load=lambda: configs[1]) as running, ClientSession() as session:
        client = Client(session, running.api_url, token)
        assert (await client("GET", "/app")).status == 401
        running.reload()

        async def may() -> bool:
            return (await client("GET", "/app")).status == 200

        await eventually(may, "the token")
