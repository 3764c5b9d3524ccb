"""Tells systemd how this process is: the protocol of sd_notify(3), by hand. Without NOTIFY_SOCKET nothing is sent."""

import asyncio
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Self


class Notifier:
    """Sends states to the service manager; it never blocks, and never raises when nobody listens."""

    def __init__(self, address: str = "", watchdog_seconds: float = 0.0) -> None:
        self._address = address
        self._watchdog_seconds = watchdog_seconds

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """The notifier that systemd asks for in the environment of its services; a silent one elsewhere."""
        address = environ.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return cls()
        if address.startswith("@"):
            address = "\0" + address[1:]  # the abstract namespace
        usec = environ.get("WATCHDOG_USEC", "")
        for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(address, int(usec) / 1e6 if for_us and usec.isascii() and usec.isdigit() else 0.0)

    def ready(self, status: str = "") -> None:
        """Starting, or a reload, is over."""
        self._send("READY=1", status)

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send("", text)

    def reloading(self) -> None:
        """A reload begins; `ready` ends it, also when the new configuration was refused."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, extend_seconds: float, status: str = "") -> None:
        """Stopping begins, and may take as long as this, also beyond TimeoutStopSec of the unit."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={round(extend_seconds * 1e6)}", status)

    async def watchdog(self) -> None:
        """Say twice in each interval that the event loop turns, until cancelled; return at once when nobody asked."""
        while self._watchdog_seconds:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_seconds / 2)

    def _send(self, state: str, status: str = "") -> None:
        if not self._address:
            return
        if status:
            state += f"\nSTATUS={' '.join(status.split())}"  # a line break would begin another variable
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaking:
            speaking.setblocking(False)
            speaking.sendto(state.strip().encode(errors="replace"), self._address)
