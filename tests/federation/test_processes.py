"""Children that die, hang, or lose the process that started them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from federation.errors import ProcessError
from federation.flower import processes
from federation.flower.processes import Children, Command, environment, free_ports, holding, is_held

_LISTEN = "import socket, sys, time; s = socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(); time.sleep(60)"


def _shell(name: str, script: str, **options: object) -> Command:
    return Command(name, ("/bin/sh", "-c", script), **options)  # type: ignore[arg-type]


def _wait(until: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_child_that_dies_at_its_start_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    [port] = free_ports(1)
    script = "for i in $(seq 50); do echo line $i; done; echo the port is taken >&2; exit 7"
    with Children(tmp_path / "logs") as children, pytest.raises(ProcessError, match="link has ended with exit code 7") as error:
        children.start(_shell("link", script, port=port))
    assert error.value.hint.splitlines()[-1] == "the port is taken" and "line 50" in error.value.hint and "line 30" not in error.value.hint
    assert (tmp_path / "logs" / "link.log").stat().st_mode & 0o777 == 0o600


def test_words_of_an_earlier_start_are_kept_and_not_shown(tmp_path: Path) -> None:
    for word in ("first", "second"):
        with Children(tmp_path) as children, pytest.raises(ProcessError) as error:
            children.start(_shell("link", f"echo {word}; exit 1", port=free_ports(1)[0]))
        assert error.value.hint.splitlines()[1:] == [word]
    assert (tmp_path / "link.log").read_text() == "first\nsecond\n"


def test_a_child_is_started_when_it_listens(tmp_path: Path) -> None:
    [port] = free_ports(1)
    with Children(tmp_path) as children:
        started = children.start(Command("link", (sys.executable, "-c", _LISTEN, str(port)), port=port))
        assert processes.listens(port) and children.pids == {"link": started}
    assert not processes.listens(port)


def test_a_child_that_is_not_ready_in_time_is_an_error_and_does_not_stay(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        with pytest.raises(ProcessError, match=r"link is not ready after 0\.3 s"):
            children.start(_shell("link", "sleep 60", port=free_ports(1)[0]), within=0.3)
        started = children.pids["link"]
    assert not psutil.pid_exists(started)


def test_a_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with Children(tmp_path) as children, pytest.raises(ProcessError, match="flower-of-nowhere cannot be started: No such file"):
        children.start(Command("link", ("flower-of-nowhere",)))


def test_a_child_that_dies_later_is_noticed(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        children.check()
        os.kill(children.start(_shell("link", "sleep 60")), signal.SIGKILL)
        with pytest.raises(ProcessError, match="has ended with signal 9"):
            _wait(lambda: children.check())


def test_a_child_may_be_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_AGAIN_SECONDS", 0.2)
    with Children(tmp_path) as children:
        first = children.start(_shell("node", "sleep 60", again=True))
        os.kill(first, signal.SIGKILL)

        def another() -> bool:
            children.check()
            return children.pids["node"] != first

        _wait(another)
        assert psutil.Process(children.pids["node"]).is_running()


def test_the_last_is_stopped_first_and_what_will_not_end_is_killed_with_its_own_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_GRACE", 0.5)
    order = tmp_path / "order"
    tells = "trap 'echo {} >> " + str(order) + "; exit' TERM; while :; do sleep 0.05; done"
    with Children(tmp_path) as children:
        children.start(_shell("one", tells.format("one")))
        children.start(_shell("two", tells.format("two")))
        deaf = psutil.Process(children.start(_shell("deaf", "trap '' TERM; sleep 61; sleep 62")))
        _wait(lambda: deaf.children())
        time.sleep(0.3)  # traps are set
        left = [deaf, *deaf.children()]
    assert order.read_text() == "two\none\n"
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in left)


_SUPERVISOR = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in the background may have been told to ignore it
from federation.flower.processes import Children, Command
with Children(Path(sys.argv[1])) as children:
    children.start(Command("one", ("/bin/sleep", "60")))
    children.start(Command("two", ("/bin/sleep", "60")))
    print(*children.pids.values(), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nobody_is_left_when_the_supervisor_is_ended(tmp_path: Path, number: signal.Signals) -> None:
    supervisor = subprocess.Popen([sys.executable, "-c", _SUPERVISOR, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert supervisor.stdout
    children = [psutil.Process(int(pid)) for pid in supervisor.stdout.readline().split()]
    assert len(children) == 2 and all(child.is_running() for child in children)
    supervisor.send_signal(number)
    _wait(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))
    assert supervisor.wait(20) != 0
    supervisor.stdout.close()


def test_children_get_no_proxies_and_no_settings_of_flower_and_report_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTP_PROXY", "ALL_PROXY", "FLWR_DATABASE", "FLWR_TRACING_ENABLED"):
        monkeypatch.setenv(name, "http://elsewhere")
    given = environment()
    assert "http://elsewhere" not in given.values() and given["FLWR_TELEMETRY_ENABLED"] == "0"
    with processes.without_proxies():
        assert not [name for name in os.environ if name.lower().endswith("_proxy")]
    assert os.environ["https_proxy"] == "http://elsewhere"


_HOLDER = """
import sys
from pathlib import Path
from federation.flower.processes import holding
with holding(Path(sys.argv[1])):
    print(flush=True)
    input()
"""


def test_a_folder_is_held_by_one_process_until_it_ends(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    other = subprocess.Popen([sys.executable, "-c", _HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout and other.stdout.readline()
    assert is_held(tmp_path) and (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ProcessError, match="another process serves it"), holding(tmp_path):
        pass
    other.kill()
    other.communicate()
    assert not is_held(tmp_path)
    with holding(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
