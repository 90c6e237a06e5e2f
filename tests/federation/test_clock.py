"""Clocks that differ: what Flower takes goes well, and what it does not is told by its name, at both sides."""

import shutil
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

from federation import gateway
from federation.traffic import trouble
from tests.federation.enrolment import BANKS, NOW
from tests.federation.system import COORDINATOR, system, until

_SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += atoi(getenv("SKEW"));
    return failed;
}
"""


def test_the_limits_are_flowers_own() -> None:
    assert (gateway._AHEAD, gateway._BEHIND) == (SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE)


@pytest.mark.parametrize(
    ("seconds", "why"), [(-4, ""), (-6, "6 s ahead of the coordinator's"), (300, ""), (310, "310 s behind the coordinator's")]
)
def test_a_clock_that_flower_does_not_take_is_named(seconds: int, why: str) -> None:
    def check(timestamp: str) -> None:
        gateway._check_clock("alder", timestamp, NOW)

    told = (NOW - timedelta(seconds=seconds)).isoformat()
    if not why:
        check(told)
        return
    with pytest.raises(gateway._Refused, match=f"alder: its clock is {why}: set both by a time server"):
        check(told)


@pytest.mark.parametrize("timestamp", ["", "yesterday", datetime(2026, 1, 1).isoformat()])
def test_a_request_without_the_time_is_refused(timestamp: str) -> None:
    with pytest.raises(gateway._Refused, match="without the time"):
        gateway._check_clock("alder", timestamp, NOW)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc"), reason="no compiler, for what sets a process's clock")
def test_a_bank_minutes_behind_takes_part_and_one_minutes_ahead_is_told_why_not(tmp_path: Path) -> None:
    shim = tmp_path / "skew.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", shim, "-x", "c", "-", "-ldl"], input=_SHIM, text=True, check=True)

    def clock(seconds: int) -> dict[str, str]:
        return {"LD_PRELOAD": str(shim), "SKEW": str(seconds)}

    with system(tmp_path / "federation", rounds=1) as made:
        made.start(COORDINATOR, "birch", "cedar")
        made.start("dogwood", env=clock(120))
        made.start("alder", env=clock(-240))
        until(lambda: "its clock is 120 s ahead of the coordinator's" in made.said("dogwood"), "dogwood is told")
        assert "its clock is" in trouble(made.world.bank_folder("dogwood"))
        following = made.order()
        assert following.wait(600) == 0
        [aggregated] = [event for event in made.events("round") if event["round"] == 1]
        assert aggregated["banks"] == [*BANKS[:3]]
