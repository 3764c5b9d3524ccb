"""`webhookd reload`: every daemon reads its files again, and says what it made of them."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from webhookd.cli.options import (
    DEAD_AFTER,
    AsJson,
    ConfigFile,
    Dev,
    loaded,
    other_hash,
    other_way,
    ran,
    spelled,
    who,
)
from webhookd.cli.tables import show_json, tell
from webhookd.config import loader
from webhookd.config.config import Config
from webhookd.errors import WebhookdError
from webhookd.policy.difference import Difference, difference, refusal
from webhookd.store.database import Database
from webhookd.store.registry import Registry, Reload, StillThere
from webhookd.store.reports import Reports

SHOWN = 10  # endpoints of a kind; --json has all
LOOK_SECONDS, LOOKS = 0.2, 75  # 15 s for the daemons to answer


class Refused(WebhookdError):
    """The daemons keep their configuration."""


def reload(
    accept_removals: Annotated[
        bool, typer.Option("--accept-removals", help="Let the endpoints go that are gone from the files, however many.")
    ] = False,
    config: ConfigFile = None,
    dev: Dev = False,
    as_json: AsJson = False,
) -> None:
    """Make all running daemons read their files again.

    It waits for what they make of them. Mistakes are found here first. A change that removes more than 5 endpoints and
    more than 1 % of them is refused unless --accept-removals is given. Exit code 1 when a daemon kept its old
    configuration.
    """
    file, found = loaded(config, dev)
    change, answers, live, kept = ran(
        _reload(
            file,
            found,
            accept_removals,
            spelled("reload", "--accept-removals", config=config, dev=dev),
            (lambda _: None) if as_json else _tell,
        )
    )
    if as_json:
        show_json(_document(change, answers, live, kept))
    elif live:
        _judge(answers, file, found, dev)
        _tell_kept(kept)
    else:
        tell("no daemon is running; the next one reads these files when it starts")
    if any(answer.problem is not None for answer in answers):
        raise typer.Exit(1)
    if len(answers) < live:
        raise Refused(f"{live - len(answers)} of {live} daemons did not answer in time: see `webhookd status`")


async def _reload(
    file: Path, config: Config, accept: bool, command: str, tell: Callable[[Difference], None]
) -> tuple[Difference, list[Reload], int, list[StillThere]]:
    """What changes, told before it does; what the daemons made of it; how many live; what of it others keep."""
    async with Database(loader.dsn(config.database, file) or None, size=1) as database:
        registry = Registry(database)
        deployed = await Reports(database).deployed(DEAD_AFTER)
        change = difference(deployed.specs, config.specs)
        if change.removed:
            if accept:
                await registry.accept_removals(change.removed, who())
            elif why := refusal(change, len(deployed.specs), command):
                raise Refused(why)
        tell(change)
        live = len(deployed.daemons)
        if live == 0:
            return change, [], 0, []
        since = await registry.ask_for_reload()
        answers: list[Reload] = []
        for _ in range(LOOKS):
            answers = await registry.reloads(since, DEAD_AFTER)
            if len(answers) >= live:
                break
            await asyncio.sleep(LOOK_SECONDS)
        kept = await registry.kept(change.removed, DEAD_AFTER) if change.removed else []
    return change, answers, live, kept


def _document(change: Difference, answers: list[Reload], live: int, kept: list[StillThere]) -> dict[str, Any]:
    daemons = [
        {"id": each.daemon, "host": each.host, "config_hash": each.config_hash, "config_problem": each.problem}
        for each in answers
    ]
    by_others = [{"endpoint": each.label, "daemons": each.daemons} for each in kept]
    unanswered = max(live - len(answers), 0)
    return {**change._asdict(), "kept_by_others": by_others, "daemons": daemons, "unanswered": unanswered}


def _tell(change: Difference) -> None:
    for word, labels in (("added", change.added), ("removed", change.removed), ("changed", change.changed)):
        if labels:
            tell(f"{word:8} {_some(labels)}")


def _tell_kept(kept: list[StillThere]) -> None:
    """What counts as before although these files have it no longer, by who has it."""
    by_daemons: dict[tuple[tuple[int, str], ...], list[str]] = {}
    for each in kept:
        by_daemons.setdefault(tuple(zip(each.daemons, each.hosts, strict=True)), []).append(each.label)
    for daemons, labels in by_daemons.items():
        who = _some([f"daemon {daemon} on {host}" for daemon, host in daemons])
        tell(
            f"kept by others: {_some(labels)}, which {who} still {'has' if len(daemons) == 1 else 'have'} in the files"
        )


def _some(things: Sequence[str]) -> str:
    return ", ".join(things[:SHOWN]) + (f" and {len(things) - SHOWN} more" if len(things) > SHOWN else "")


def _judge(answers: list[Reload], file: Path, config: Config, dev: bool) -> None:
    differ = any(answer.config_hash != config.config_hash for answer in answers)
    other = other_hash(file, dev) if differ else ""
    for answer in answers:
        if answer.problem is not None:
            told = "kept its old configuration: " + answer.problem.replace("\n", "; ")
        elif answer.config_hash == other:
            told = f"reloaded; it runs {other_way(dev)}"
        elif answer.config_hash != config.config_hash:
            told = f"reloaded, from other files or another environment than yours ({file})"
        else:
            told = "reloaded"
        tell(f"daemon {answer.daemon} on {answer.host}: {told}")
