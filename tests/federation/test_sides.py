"""Banks that cannot take part, as processes beside others that can: what their people are told, and that the run goes on."""

import shutil
import subprocess
from pathlib import Path

import pytest

from federation.dossier.report import record_of
from federation.flower.traffic import Totals, totals
from federation.rounds import record
from tests.federation.enrolment import BANKS
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


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not shutil.which("gcc"), reason="no compiler, for what sets a process's clock")
def test_a_clock_minutes_ahead_and_a_bundle_that_is_not_listed_are_told_and_a_clock_minutes_behind_does_no_harm(tmp_path: Path) -> None:
    shim = tmp_path / "skew.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", shim, "-x", "c", "-", "-ldl"], input=_SHIM, text=True, check=True)

    def clock(seconds: int) -> dict[str, str]:
        return {"LD_PRELOAD": str(shim), "SKEW": str(seconds)}

    with system(tmp_path / "federation", rounds=1, timeouts={"keys": 60}) as made:
        made.start(COORDINATOR, "birch", "cedar")
        made.start("alder", env=clock(-240))
        made.start("dogwood", env=clock(120))
        until(lambda: "its clock is 120 s ahead of the coordinator's" in made.said("dogwood"), "dogwood is told")
        made.kill("dogwood")
        made.world.allow("dogwood", bundles=[])
        made.start("dogwood")
        until(lambda: totals(made.home).get("dogwood", Totals()).requests > 5, "dogwood is there")
        following = made.order()
        shown = following.communicate(timeout=900)[0]
        assert following.returncode == 0, shown
        [aggregated] = [event for event in made.events("round") if event["round"] == 1]
        assert aggregated["banks"] == [*BANKS[:3]]
        assert "bundles: " in made.said("dogwood") and "its policy does not list the bundle of the code that" in made.said("dogwood")
        assert {(each["bank"], each["rule"]) for each in made.events("refusal")} == {("dogwood", "bundles")}
        assert {each.rule for each in record.decisions(record_of(made.world.bank_folder("dogwood")))} == {"bundles"}
