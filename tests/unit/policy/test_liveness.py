"""Who is known to be dead; whoever may be alive is not."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import until
from webhookd.daemon.processes import ourselves, see
from webhookd.policy.liveness import Process, Stat, is_dead, stat_of

US = Process("host boot pid:[1] time:[1]", 4242, 777)
LINE = "4242 (webhookd) S 1 4242 4242 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 3 0 777 1 1 18446744073709551615"


def stat(pid: int = 4242, state: str = "S", threads: int = 3, started: int = 777, name: str = "webhookd") -> str:
    return f"{pid} ({name}) {state} 1 1 1 0 -1 0 1 0 0 0 1 1 0 0 20 0 {threads} 0 {started} 1 1 18446744073709551615\n"


@pytest.mark.parametrize("name", ["webhookd", "a b", ") Z 1 (", "Z", "", "(((", "\n) X 1"])
def test_the_name_of_a_program_misleads_nobody(name: str) -> None:
    assert stat_of(stat(name=name)) == Stat(4242, "S", 3, 777)


@given(st.text())
def test_whatever_is_read_is_no_proof_of_death_unless_it_is_a_stat(text: str) -> None:
    found = stat_of(text)
    assert found is None or (found.state and text.count(")"))
    assert not is_dead(US, None)


@pytest.mark.parametrize("state", ["R", "S", "D", "T", "t", "I", "W", "P"])
def test_who_runs_sleeps_or_is_frozen_is_alive(state: str) -> None:
    assert not is_dead(US, Stat(4242, state, 3, 777))


@pytest.mark.parametrize("seen", ["absent", Stat(4242, "S", 3, 778), Stat(4242, "Z", 1, 777), Stat(4242, "X", 0, 777)])
def test_who_is_gone_replaced_or_a_zombie_is_dead(seen: Stat) -> None:
    assert is_dead(US, seen)


def test_whose_first_thread_has_ended_is_alive_while_others_run() -> None:
    assert not is_dead(US, Stat(4242, "Z", 2, 777))


# What the machine says.


def kill(error: type[OSError] | None = None) -> Callable[[int, int], None]:
    def answer(_pid: int, signal: int) -> None:
        assert signal == 0
        if error is not None:
            raise error

    return answer


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc with ourselves in it, and a process 4242."""
    us = tmp_path / str(os.getpid())
    us.mkdir()
    (tmp_path / "self").symlink_to(us.name)
    (us / "stat").write_text(stat(os.getpid(), started=55))
    (us / "ns").mkdir()
    (us / "ns/pid").symlink_to("pid:[4026531836]")
    (us / "ns/time").symlink_to("time:[4026531834]")
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("9e392514-5054-40dc-adbb-1bc32830c8a4\n")
    (tmp_path / "4242").mkdir()
    (tmp_path / "4242/stat").write_text(stat())
    return tmp_path


def test_a_pid_is_seen(proc: Path) -> None:
    assert see(4242, proc, kill()) == Stat(4242, "S", 3, 777)
    assert see(4242, proc, kill(ProcessLookupError)) == "absent"
    assert see(4242, proc, kill(PermissionError)) == Stat(4242, "S", 3, 777)  # of another user: the reused pid of one


@pytest.mark.parametrize("answer", [None, PermissionError, OSError])
def test_what_is_hidden_or_cannot_be_read_is_nothing_known(proc: Path, answer: type[OSError] | None) -> None:
    for pid in (1, 99, -1, 0):
        assert see(pid, proc, kill(answer)) is None
    assert see(0, proc, kill(ProcessLookupError)) is see(-1, proc, kill(ProcessLookupError)) is None  # no pids at all
    (proc / "4242/stat").write_text("")
    assert see(4242, proc, kill(answer)) is None


def test_we_know_ourselves(proc: Path) -> None:
    us = ourselves(proc, {})
    assert us is not None
    assert us.machine.split()[1:] == ["9e392514505440dcadbb1bc32830c8a4", "pid:[4026531836]", "time:[4026531834]"]
    assert us[1:] == (os.getpid(), 55)
    (proc / "self/ns/time").unlink()  # an older Linux
    assert ourselves(proc, {}) is not None


def test_where_the_unit_hides_the_boot_it_says_which_it_is(proc: Path) -> None:
    told = ourselves(proc, {})
    (proc / "sys/kernel/random/boot_id").unlink()
    assert ourselves(proc, {}) is None
    assert ourselves(proc, {"BOOT_ID": "9e392514505440dcadbb1bc32830c8a4"}) == told
    unit = (Path(__file__).parents[3] / "systemd/webhookd.service").read_text()
    assert "ProcSubset=pid" in unit
    assert "\nEnvironment=BOOT_ID=%b\n" in unit


@pytest.mark.parametrize("missing", ["self/stat", "self/ns/pid"])
def test_who_cannot_tell_who_it_is_says_nothing(proc: Path, missing: str) -> None:
    (proc / missing).unlink()
    assert ourselves(proc, {}) is None


def test_the_proc_of_another_namespace_is_not_believed(proc: Path) -> None:
    (proc / "self/stat").write_text(stat(os.getpid() + 1))
    assert ourselves(proc, {}) is None


# Processes.


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A process of ours that has said who it is, and waits."""
    text = "from webhookd.daemon.processes import ourselves; print(*ourselves(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def told(process: "subprocess.Popen[str]") -> Process:
    assert process.stdout is not None
    *machine, pid, started = process.stdout.readline().split()
    return Process(" ".join(machine), int(pid), int(started))


async def test_a_process_lives_frozen_too_and_is_dead_when_it_ended(child: "subprocess.Popen[str]") -> None:
    it, us = told(child), ourselves()
    assert us is not None
    assert it.machine == us.machine
    assert not is_dead(it, see(it.pid))
    assert is_dead(it._replace(started=it.started - 1), see(it.pid))  # an earlier one of this pid
    child.send_signal(SIGSTOP)
    await until(lambda: getattr(see(it.pid), "state", "") == "T", "it to be frozen")
    assert not is_dead(it, see(it.pid))
    child.send_signal(SIGCONT)
    child.send_signal(SIGKILL)
    await until(lambda: is_dead(it, see(it.pid)), "it to be a zombie")
    assert getattr(see(it.pid), "state", "") == "Z"
    child.wait()
    assert see(it.pid) == "absent"
    assert is_dead(it, see(it.pid))


def test_we_are_alive() -> None:
    us = ourselves()
    assert us is not None
    assert not is_dead(us, see(us.pid))
