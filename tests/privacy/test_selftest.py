"""The self-tests of a run pass where all is right, and each of them finds its own fault."""

import numpy as np
import pytest

from privacy.noise import GaussianNoise
from privacy.plan import PrivacyPlan
from privacy.sampling import UnitSampler
from privacy.selftest import SelfTest, Share, Verdicts
from privacy.stream import Stream

PLAN = PrivacyPlan(units=1000, expected_batch=50, steps=40, spare_steps=0, clip_norm=0.5, noise_multiplier=1.2, delta=1e-5)
NUMBERS = 2000


def _run(
    *,
    scale: float = 1.0,
    rate: float = 1.0,
    alike: bool = False,
    reused: bool = False,
    charged: int = 40,
    moved: float = 0.9,
    ranks: int = 2,
) -> Verdicts:
    """Forty steps on two workers, each with noise for a stretch of its own; the arguments are faults."""
    tests = [SelfTest(PLAN) for _ in range(ranks)]
    samplers = [UnitSampler(PLAN.units, PLAN.sampling_rate * rate, PLAN.cap, Stream(seed=1)) for _ in range(ranks)]
    noises = [GaussianNoise(PLAN.noise_scale * scale, Stream(seed=10 if alike else 10 + rank)) for rank in range(ranks)]
    generator = np.random.default_rng(0)
    for _ in range(PLAN.steps):
        if reused:
            noises = [GaussianNoise(PLAN.noise_scale, Stream(seed=10 + rank)) for rank in range(ranks)]
        for test, sampler, noise in zip(tests, samplers, noises, strict=True):
            before = generator.normal(0, 3, NUMBERS).astype(np.float32)
            test.saw_noise(before, before + noise.draw(NUMBERS))
            test.saw_draw(sampler.draw())
    tests[0].moved = moved
    return tests[0].judge([test.share() for test in tests], coins=samplers[0].coins, drawn=samplers[0].drawn, steps=40, charged=charged)


def test_a_right_run_passes_all() -> None:
    verdicts = _run()

    assert verdicts == Verdicts(True, True, True, True, True)
    assert verdicts.passed and not verdicts.failed


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ({"scale": 0.97}, "noise_scale"),
        ({"scale": 1.03}, "noise_scale"),
        ({"rate": 0.8}, "inclusions"),
        ({"rate": 1.2}, "inclusions"),
        ({"alike": True}, "independence"),
        ({"reused": True}, "independence"),
        ({"charged": 39}, "charges"),
        ({"charged": 41}, "charges"),
        ({"moved": 1.001}, "sensitivity"),
    ],
)
def test_each_fault_is_found_by_its_own_test(fault: dict[str, float], found: str) -> None:
    assert _run(**fault).failed == [found]  # type: ignore[arg-type]


def test_a_worker_with_too_little_noise_is_found_beside_one_with_too_much() -> None:
    shares = [Share(scale**2 * PLAN.noise_scale**2 * 10**6, 10**6, np.empty(0, np.float32), "") for scale in (0.97, 1.03)]

    verdicts = [SelfTest(PLAN).judge(seen, coins=0, drawn=0, steps=0, charged=0).noise_scale for seen in (shares, shares[:1], [])]

    assert verdicts == [False, False, None]


def test_workers_that_drew_different_units_are_found() -> None:
    shares = [Share(1.0, 1, np.empty(0, np.float32), digest) for digest in "ab"]

    assert SelfTest(PLAN).judge(shares, coins=0, drawn=0, steps=0, charged=0).independence is False


def test_a_run_without_a_step_has_nothing_to_test() -> None:
    test = SelfTest(PLAN)

    verdicts = test.judge([test.share()], coins=0, drawn=0, steps=0, charged=0)

    assert verdicts == Verdicts(None, None, None, None, True)
