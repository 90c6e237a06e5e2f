import math

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import binom

from privacy import accountant
from privacy.audit import Claim, Scores, one_run, tail
from privacy.audit_curve import _p_value, gaussian, gaussian_epsilon, one_run_fdp, refutes, through
from privacy.errors import AuditError
from privacy.plan import Event, batch_cap
from tests.privacy.scores import tossed_dp_sgd_scores, tossed_gaussian_scores

DELTA = 1e-5


def _points(mu: float) -> list[Claim]:
    """Of Gaussian noise, as an accountant would list them."""
    return [Claim(gaussian_epsilon(mu, delta), delta) for delta in np.geomspace(1e-9, 0.3, 60)]


def _most_likely(canaries: int, guesses: int, correct: int, promise: list[Claim]) -> float:
    """The largest P[C >= correct] that the theorem's inequalities allow, by linear programming over P[C = k]."""
    counts = np.arange(guesses + 1)
    rows, limits = [], []
    for at_least in range(1, guesses + 1):
        right = np.where(counts >= at_least, counts, 0) / canaries
        wrong = np.where(counts >= at_least - 1, guesses - counts, 0) / canaries
        for claim in promise:
            rows += [right - math.exp(claim.epsilon) * wrong, right - math.exp(-claim.epsilon) * wrong]
            limits += [claim.delta, 1 - math.exp(-claim.epsilon) * (1 - claim.delta)]
    found = linprog(-(counts >= correct).astype(float), np.array(rows), limits, np.ones((1, guesses + 1)), [1.0], method="highs")
    return float(-found.fun)


@pytest.mark.parametrize("promise", [[Claim(0.5, 0.0)], [Claim(0.5, 0.01)], _points(1.0)[::6]])
@pytest.mark.parametrize(("canaries", "guesses"), [(8, 8), (20, 8), (40, 20)])
def test_the_recursion_finds_what_linear_programming_finds(promise: list[Claim], canaries: int, guesses: int) -> None:
    for correct in range(guesses // 2, guesses + 1):
        exact = _most_likely(canaries, guesses, correct, promise)
        found = _p_value(canaries, guesses, correct, through(promise))
        assert exact * (1 - 1e-6) <= found <= exact * 1.011 + 1e-12


def test_under_pure_epsilon_it_is_never_below_the_exact_tail() -> None:
    for correct in range(60, 101, 5):
        assert _p_value(1000, 100, correct, through([Claim(0.5, 0.0)])) >= tail(1000, 100, correct, Claim(0.5, 0.0)) * (1 - 1e-9)


def test_a_gaussian_curve_and_its_points_are_nearly_one() -> None:
    exact, listed = gaussian(1.0), through(_points(1.0))
    for probability in (1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999):
        assert 0.9 * exact(probability) - 1e-4 <= listed(probability) <= exact(probability) + 1e-9  # points promise a little less


def test_the_epsilon_of_gaussian_noise_is_the_accountants() -> None:
    from dp_accounting import get_sigma_gaussian

    for epsilon in (0.1, 1.0, 4.0, 30.0):
        assert gaussian_epsilon(1 / float(get_sigma_gaussian(epsilon, DELTA)), DELTA) == pytest.approx(epsilon, rel=1e-6)
    assert gaussian_epsilon(0.0, DELTA) == 0 and gaussian_epsilon(1.0, 0.0) == math.inf


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.0])
def test_the_bound_lies_below_the_truth_with_its_confidence(mu: float) -> None:
    promise = _points(mu)
    runs = [one_run_fdp(tossed_gaussian_scores(mu, 200, seed), promise, DELTA, 0.8) for seed in range(60)]
    assert binom.sf(sum(run.mu > mu for run in runs) - 1, len(runs), 0.2) > 1e-6
    assert binom.sf(sum(run.p_value <= 0.2 for run in runs) - 1, len(runs), 0.2) > 1e-6


def test_it_refutes_broken_noise_that_one_delta_cannot_refute() -> None:
    promised, real = 1.0, 2.5
    claim = Claim(gaussian_epsilon(promised, DELTA), DELTA)
    scores = tossed_gaussian_scores(real, 1000, seed=0)
    run = one_run_fdp(scores, _points(promised), DELTA)
    assert one_run(scores, claim).p_value > 0.05 > run.p_value
    assert claim.epsilon < run.epsilon < gaussian_epsilon(real, DELTA)


def test_private_training_is_not_refuted_by_its_accountants_curve_and_with_a_third_of_the_noise_it_is() -> None:
    event = Event(noise_multiplier=1.0, sampling_rate=0.1, units=2000, cap=batch_cap(2000, 200), steps=60)
    promise = [Claim(accountant.epsilon([event], delta), delta) for delta in (1e-7, 1e-5, 1e-3, 1e-2, 0.05, 0.2)]
    kept = [one_run_fdp(tossed_dp_sgd_scores(1.0, 0.1, 60, 500, seed), promise, DELTA, 0.8) for seed in range(20)]
    assert binom.sf(sum(run.p_value <= 0.2 for run in kept) - 1, len(kept), 0.2) > 1e-6
    assert binom.sf(sum(run.epsilon > promise[1].epsilon for run in kept) - 1, len(kept), 0.2) > 1e-6
    broken = tossed_dp_sgd_scores(0.3, 0.1, 60, 1000, seed=0)
    assert one_run_fdp(broken, promise, DELTA).p_value < 0.05
    assert one_run(tossed_dp_sgd_scores(1.0, 0.1, 60, 1000, seed=0), promise[1]).epsilon < promise[1].epsilon


def test_noise_as_promised_is_not_refuted_and_a_hundred_thousand_canaries_are_no_matter() -> None:
    run = one_run_fdp(tossed_gaussian_scores(1.0, 100_000, seed=0), _points(1.0), DELTA)
    assert run.p_value > 0.05 and 0.5 < run.mu < 1


def test_no_canary_and_one_canary_refute_nothing() -> None:
    for inside in (np.array([]), np.array([1.0])):
        run = one_run_fdp(Scores(inside, np.array([])), _points(1.0), DELTA)
        assert (run.mu, run.epsilon, run.p_value) == (0, 0, 1)


def test_nothing_right_refutes_nothing() -> None:
    assert not refutes(100, 10, 0, gaussian(0.0), 1.0)


def test_a_promise_of_no_points_is_refused() -> None:
    with pytest.raises(AuditError, match="no points"):
        one_run_fdp(tossed_gaussian_scores(1.0, 10, seed=0), [], DELTA)
