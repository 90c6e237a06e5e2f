"""A bank's clock, as the coordinator's gateway sees it."""

from datetime import datetime, timedelta

import pytest
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

from federation.flower import gateway
from tests.federation.enrolment import NOW


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
