"""Notices edits of the configuration's files."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from watchfiles import Change, awatch

STILL_MS = 1_000  # an editor, `git pull` or a volume writes several times
AT_MOST_MS = 10_000
AGAIN_SECONDS = 5.0

log = structlog.get_logger("webhookd.watcher")


def concerns(_: Change, path: str) -> bool:
    """True for a file of the configuration, and for the links by which a mounted ConfigMap changes all of its files."""
    name = Path(path).name
    return (name.endswith(".toml") and not name.startswith(".")) or name == "..data"


async def watch(directories: Sequence[Path], on_change: Callable[[], None], stopped: asyncio.Event) -> None:
    """Call `on_change` when files in these directories have changed and been still for a second, until `stopped`.

    A directory that comes or goes is a change too.
    """
    known = _there(directories)
    while directories and not stopped.is_set():
        there = _there(directories)
        if there != known:
            known = there
            on_change()
        try:
            async for changes in awatch(
                *there,
                watch_filter=concerns,
                debounce=AT_MOST_MS,
                step=STILL_MS,
                stop_event=stopped,
                recursive=False,
                ignore_permission_denied=True,
                yield_on_timeout=len(there) < len(directories),  # to look whether the others have come
            ):
                if changes:
                    on_change()
                if _there(directories) != there:
                    break
        except OSError as error:  # no more watches, or a directory is gone
            log.warning("not_watching", reason=error.strerror)
            await asyncio.sleep(AGAIN_SECONDS)


def _there(directories: Sequence[Path]) -> list[Path]:
    return [directory for directory in directories if directory.is_dir()]
