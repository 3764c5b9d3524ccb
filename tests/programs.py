"""Programs that others wrote, run beside a daemon of this process."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

SECONDS = 240.0


async def said_by(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> tuple[int | None, str]:
    """Its exit code and all that it says; it is ended when it takes too long."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(SECONDS):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, said.decode(errors="replace")
