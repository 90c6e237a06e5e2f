import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import REPOSITORY
from trainers import lease
from trainers.errors import RunBusyError
from trainers.lease import EXPIRY_SECONDS, Lease, check_free
from trainers.storage import Store

HOLD = """
import sys
from pathlib import Path
from trainers.errors import RunBusyError
from trainers.lease import Lease

sys.stdin.readline()
try:
    Lease(Path(sys.argv[1]), sys.argv[2]).acquire()
    print("held", flush=True)
except RunBusyError:
    print("refused", flush=True)
sys.stdin.readline()
"""


class Contender:
    """A process of its own that asks for the lease when told to, and keeps it until it ends."""

    def __init__(self, run_dir: Path, run_id: str) -> None:
        command = [sys.executable, "-c", HOLD, str(run_dir), run_id]
        self.process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self, *, reap: bool = True) -> None:
        self.process.kill()
        if reap:
            self.process.communicate()


def _hold(run_dir: Path, run_id: str) -> Contender:
    other = Contender(run_dir, run_id)
    other.go()
    assert other.answer() == "held"
    return other


def _write(run_dir: Path, **changes: Any) -> None:
    """A lease of another run on a machine elsewhere that has just beaten, except for `changes`."""
    holder = {"run_id": "theirs", "owner": "o", "host": "elsewhere", "machine": "m", "pid": 7, "born": 1.5, "beat": time.time()}
    (run_dir / "lease.json").write_text(json.dumps(holder | changes))


def _holder(run_dir: Path) -> dict[str, Any]:
    return dict(json.loads((run_dir / "lease.json").read_text()))


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Lease]:
    held = Lease(tmp_path, "mine")
    yield held
    held.release()


def test_a_second_live_run_is_refused_and_told_who_holds_the_directory(tmp_path: Path, mine: Lease) -> None:
    other = _hold(tmp_path, "theirs")
    with pytest.raises(RunBusyError, match=f"held by a live run .process {other.process.pid} on ") as caught:
        mine.acquire()
    assert caught.value.exit_code == 2 and "wait for it" in caught.value.hint
    with pytest.raises(RunBusyError):
        check_free(tmp_path)
    other.kill()


def test_the_lease_of_a_dead_process_is_free_at_once_on_its_own_machine(tmp_path: Path, mine: Lease) -> None:
    other = _hold(tmp_path, "theirs")
    other.kill()
    assert time.time() - _holder(tmp_path)["beat"] < EXPIRY_SECONDS
    mine.acquire()
    assert _holder(tmp_path)["run_id"] == "mine"


def test_a_dead_process_that_nobody_has_reaped_is_dead(tmp_path: Path) -> None:
    other = _hold(tmp_path, "theirs")
    other.kill(reap=False)
    _wait_for(lambda: lease._born(other.process.pid) is None)
    check_free(tmp_path)
    other.kill()


def test_the_same_run_takes_over_and_its_former_worker_notices(tmp_path: Path, mine: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.02)
    mine.acquire()
    assert not mine.lost
    successor = Lease(tmp_path, "mine")
    successor.acquire()
    _wait_for(lambda: mine.lost)
    assert mine.lost and not successor.lost
    successor.release()


def test_a_lease_that_is_held_is_beaten(tmp_path: Path, mine: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.02)
    mine.acquire()
    first = _holder(tmp_path)["beat"]
    _wait_for(lambda: first < _holder(tmp_path)["beat"] <= time.time())
    assert not mine.lost


def test_a_heartbeat_does_not_write_over_who_took_the_lease(tmp_path: Path, mine: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.02)
    mine.acquire()
    _write(tmp_path)
    time.sleep(0.2)
    assert _holder(tmp_path)["run_id"] == "theirs"


def test_a_heartbeat_that_cannot_be_written_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.02)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    held = Lease(run_dir, "mine")
    held.acquire()
    run_dir.rename(tmp_path / "away")
    time.sleep(0.1)
    (tmp_path / "away").rename(run_dir)
    came_back = time.time()
    _wait_for(lambda: _holder(run_dir)["beat"] > came_back)
    held.release()


def test_release_leaves_the_directory_free(tmp_path: Path, mine: Lease) -> None:
    mine.acquire()
    mine.release()
    assert not (tmp_path / "lease.json").exists()
    check_free(tmp_path)


def test_release_removes_only_ones_own(tmp_path: Path, mine: Lease) -> None:
    mine.acquire()
    _write(tmp_path)
    mine.release()
    assert _holder(tmp_path)["run_id"] == "theirs"


def test_release_of_a_lease_never_acquired_touches_nothing(tmp_path: Path, mine: Lease) -> None:
    _write(tmp_path)
    mine.release()
    assert [path.name for path in tmp_path.iterdir()] == ["lease.json"]


def test_no_heartbeat_comes_after_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.0001)
    for _ in range(5):
        held = Lease(tmp_path, "mine")
        held.acquire()
        held.release()
        time.sleep(0.01)
        assert not (tmp_path / "lease.json").exists()


def test_release_after_the_directory_is_gone_is_no_error(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    held = Lease(run_dir, "mine")
    held.acquire()
    run_dir.rename(tmp_path / "elsewhere")
    held.release()


def test_a_fresh_lease_of_another_machine_is_respected(tmp_path: Path, mine: Lease) -> None:
    _write(tmp_path)
    with pytest.raises(RunBusyError, match="process 7 on elsewhere"):
        mine.acquire()


def test_an_expired_lease_of_another_machine_is_free(tmp_path: Path, mine: Lease) -> None:
    _write(tmp_path, beat=time.time() - EXPIRY_SECONDS - 1)
    mine.acquire()
    assert _holder(tmp_path)["run_id"] == "mine"


def test_a_machine_of_the_same_name_is_another_machine(tmp_path: Path, mine: Lease) -> None:
    mine.acquire()
    here = _holder(tmp_path)
    _write(tmp_path, host=here["host"], machine="another container", pid=2**22 + 1)
    with pytest.raises(RunBusyError):
        check_free(tmp_path)


@pytest.mark.parametrize(("born", "free"), [(-1000.0, True), (-1.0, False)])
def test_a_process_id_used_again_is_not_the_holder(tmp_path: Path, mine: Lease, born: float, free: bool) -> None:
    mine.acquire()
    here = _holder(tmp_path)
    _write(tmp_path, machine=here["machine"], pid=here["pid"], born=here["born"] + born)
    if free:
        check_free(tmp_path)
    else:  # the clock was set by a second
        with pytest.raises(RunBusyError):
            check_free(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "5", "null", '{"pid": 3}', "[[1]]", "\x00\x00"])
def test_garbage_is_no_holder(tmp_path: Path, mine: Lease, content: str) -> None:
    (tmp_path / "lease.json").write_text(content)
    mine.acquire()
    assert _holder(tmp_path)["run_id"] == "mine"


@pytest.mark.parametrize("changes", [{"pid": "7"}, {"beat": None}, {"beat": "now"}, {"run_id": 3}, {"extra": 1}])
def test_a_lease_with_values_of_another_kind_is_no_holder(tmp_path: Path, changes: dict[str, Any]) -> None:
    _write(tmp_path, **changes)
    check_free(tmp_path)


@pytest.mark.parametrize("pid", [-1, 0, 2**40, 2**80])
def test_an_impossible_process_is_dead(tmp_path: Path, pid: int) -> None:
    _write(tmp_path, machine=lease._machine(), pid=pid)
    check_free(tmp_path)


def test_who_waits_for_the_lock_looks_after_it_has_it(tmp_path: Path, mine: Lease) -> None:
    refused: list[RunBusyError] = []

    def acquire() -> None:
        try:
            mine.acquire()
        except RunBusyError as error:
            refused.append(error)

    with (tmp_path / "lease.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread = threading.Thread(target=acquire)
        thread.start()
        time.sleep(0.1)
        _write(tmp_path)  # what a run that found it free at the same time writes
    thread.join()
    assert len(refused) == 1 and _holder(tmp_path)["run_id"] == "theirs"


def test_of_two_processes_that_ask_at_once_exactly_one_gets_it(tmp_path: Path) -> None:
    contenders = [(Contender(run_dir, "a"), Contender(run_dir, "b")) for run_dir in _make_folders(tmp_path, 10)]
    for pair in contenders:
        for contender in pair:
            contender.go()
        assert sorted(contender.answer() for contender in pair) == ["held", "refused"]
    for pair in contenders:
        for contender in pair:
            contender.kill()


def _make_folders(folder: Path, count: int) -> list[Path]:
    folders = [folder / str(number) for number in range(count)]
    for one in folders:
        one.mkdir()
    return folders


def test_two_runs_do_not_hold_one_place_in_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.02)
    store = Store(f"file://{tmp_path}/bucket/run")
    mine = Lease(tmp_path, "mine", store)
    mine.acquire()
    with pytest.raises(RunBusyError, match=f"file://.*/bucket/run is held by a live run .process {os.getpid()} on "):
        Lease(tmp_path, "theirs", store).acquire()
    with pytest.raises(RunBusyError):
        check_free(tmp_path, store)

    successor = Lease(tmp_path, "mine", store)  # the same run, its workers started again
    successor.acquire()
    _wait_for(lambda: mine.lost)

    successor.release()
    check_free(tmp_path, store)
    assert not list((tmp_path / "bucket" / "run").iterdir())


def test_a_store_that_stalls_costs_a_heartbeat_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.02)
    bucket = tmp_path / "bucket"
    held = Lease(tmp_path, "mine", Store(f"file://{bucket}"))
    held.acquire()
    bucket.rename(tmp_path / "away")
    bucket.touch()  # no folder: every call fails
    time.sleep(0.1)
    bucket.unlink()
    (tmp_path / "away").rename(bucket)
    came_back = time.time()
    _wait_for(lambda: bool((bucket / "lease.json").read_bytes()) and _holder(bucket)["beat"] > came_back)
    assert not held.lost
    held.release()
