import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from privacy.audit import Claim, Outcome, Scores, clopper_pearson, guess_counts, judge, one_run, power, proportion, rates_bound, tail
from privacy.audit_curve import gaussian_epsilon
from privacy.errors import AuditError
from tests.privacy.scores import tossed_gaussian_scores

DELTA = 1e-5
SETTLED = 1e-6
"""A test of a promise fails a right implementation less often than this."""


def _mu(epsilon: float) -> float:
    from dp_accounting import get_sigma_gaussian

    return 1 / float(get_sigma_gaussian(epsilon, DELTA))


def _kept(missed: int, tried: int, confidence: float) -> bool:
    """Whether so many bounds above the truth are what the confidence allows."""
    return bool(binom.sf(missed - 1, tried, 1 - confidence) > SETTLED)


@pytest.mark.parametrize(("canaries", "epsilon"), [(100, 3.49), (200, 4.19), (500, 5.10), (1000, 5.78), (2000, 6.45), (5000, 7.28)])
def test_so_many_canaries_certify_no_more_than_this(canaries: int, epsilon: float) -> None:
    assert power(canaries, DELTA) == pytest.approx(epsilon, abs=0.006)


def test_no_canaries_have_no_power() -> None:
    assert power(0, DELTA) == power(1, DELTA) == 0


def test_without_delta_the_tail_is_the_binomial_one() -> None:
    assert tail(1000, 100, 80, Claim(1.0, 0.0)) == pytest.approx(float(binom.sf(79, 100, math.e / (1 + math.e))), rel=1e-12)


@pytest.mark.parametrize(("epsilon", "typical"), [(2, 0.6), (4, 1.6), (8, 2.8)])
def test_even_the_best_attack_proves_far_less_than_epsilon(epsilon: float, typical: float) -> None:
    bounds = [one_run(tossed_gaussian_scores(_mu(epsilon), 1000, seed), Claim(epsilon, DELTA)).epsilon for seed in range(9)]
    assert float(np.median(bounds)) == pytest.approx(typical, abs=0.3)


@pytest.mark.parametrize("epsilon", [0.5, 1, 4])
def test_the_one_run_bound_lies_below_the_truth_with_its_confidence(epsilon: float) -> None:
    mu, claim = _mu(epsilon), Claim(epsilon, DELTA)
    runs = [one_run(tossed_gaussian_scores(mu, 300, seed), claim, 0.8) for seed in range(50)]
    assert _kept(sum(run.epsilon > epsilon for run in runs), len(runs), 0.8)
    assert _kept(sum(run.p_value <= 0.2 for run in runs), len(runs), 0.8)


def test_guesses_as_good_as_epsilon_allows_refute_it_as_often_as_stated_and_half_of_it_nearly_always() -> None:
    rng = np.random.default_rng(0)
    right = rng.binomial(200, math.e / (1 + math.e), size=2000)  # randomised response: the bound is tight
    tails = np.array([tail(200, 200, int(count), Claim(1.0, 0.0)) for count in right])
    assert 0.02 < (tails <= 0.05).mean() < 0.06
    assert np.mean([tail(200, 200, int(count), Claim(0.5, 0.0)) <= 0.05 for count in right[:300]]) > 0.8


@pytest.mark.parametrize("epsilon", [0.5, 4])
def test_the_bound_by_rates_lies_below_the_truth_with_its_confidence(epsilon: float) -> None:
    mu = _mu(epsilon)
    bounds = [clopper_pearson(tossed_gaussian_scores(mu, 300, seed), DELTA, 0.8) for seed in range(150)]
    assert _kept(sum(bound > epsilon for bound in bounds), len(bounds), 0.8)


def test_a_threshold_taken_at_a_rank_costs_no_confidence() -> None:
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(2000):
        threshold = np.sort(rng.normal(size=100))[94]  # five of a hundred lie above it
        missed += float(norm.sf(threshold)) > proportion(5, 100, 0.2)[1]
    assert _kept(missed, 2000, 0.9) and missed > 100  # neither more often than stated nor much less: the limit is exact


def test_rates_give_the_bound_worked_out_by_hand() -> None:
    assert rates_bound(500, 1000, 10, 1000, DELTA, 0.05) == pytest.approx(3.24, abs=0.01)
    assert rates_bound(10, 1000, 500, 1000, DELTA, 0.05) == 0
    assert rates_bound(0, 0, 0, 0, DELTA, 0.05) == 0


def test_a_leak_of_the_unplanted_counts_as_much_as_one_of_the_planted() -> None:
    scores = Scores(np.zeros(500), np.concatenate([np.zeros(250), np.full(250, -1.0)]))
    assert clopper_pearson(scores, DELTA) == clopper_pearson(Scores(-scores.outside, -scores.inside), DELTA) > 3


def test_a_broken_mechanism_is_failed() -> None:
    claim = Claim(1.0, DELTA)
    verdict = judge(claim, one_run(tossed_gaussian_scores(_mu(8), 1000, seed=0), claim))
    assert verdict.outcome is Outcome.FAILED and verdict.run is not None and verdict.run.p_value < 0.01
    assert verdict.sentence.startswith("Epsilon 1 at delta 1.0e-05 is refuted: ")


def test_a_mechanism_that_keeps_its_promise_passes_and_is_told_that_this_is_no_proof() -> None:
    claim = Claim(4.0, DELTA)
    verdict = judge(claim, one_run(tossed_gaussian_scores(_mu(4), 1000, seed=0), claim))
    assert verdict.outcome is Outcome.PASSED and verdict.sentence.endswith("this catches bugs and is no proof.")
    stored = json.loads(json.dumps(verdict.as_dict()))
    assert stored["outcome"] == "passed" and stored["claim"] == {"epsilon": 4.0, "delta": DELTA}
    assert stored["lower_bound"] == stored["run"]["epsilon"] > 1


def test_a_claim_that_lies_beyond_reach_has_no_power() -> None:
    claim = Claim(8.0, DELTA)
    verdict = judge(claim, one_run(Scores(np.ones(50), np.zeros(50)), claim))
    assert verdict.outcome is Outcome.NO_POWER and "100 canaries cannot show more" in verdict.sentence
    assert verdict.run is not None and verdict.run.epsilon == verdict.run.reach < power(100, DELTA)


def test_a_run_without_canaries_is_not_auditable() -> None:
    verdict = judge(Claim(4.0, DELTA), None)
    assert verdict.outcome is Outcome.NOT_AUDITABLE and verdict.as_dict()["lower_bound"] is None


@pytest.mark.parametrize("scores", [Scores(np.array([]), np.array([])), Scores(np.array([1.0]), np.array([]))])
def test_no_canary_and_one_canary_bound_nothing(scores: Scores) -> None:
    run = one_run(scores, Claim(1.0, DELTA))
    assert (run.epsilon, run.p_value, run.reach, run.guesses) == (0, 1, 0, 0)
    assert clopper_pearson(scores, DELTA) == 0
    assert judge(Claim(1.0, DELTA), run).outcome is Outcome.NO_POWER


def test_scores_all_tied_bound_nothing_in_whatever_order_they_come() -> None:
    for coins in ([True] * 500 + [False] * 500, [False] * 500 + [True] * 500, [True, False] * 500):
        scores = Scores.tossed([0.0] * 1000, coins)
        assert one_run(scores, Claim(1.0, DELTA)).epsilon == clopper_pearson(scores, DELTA) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(AuditError, match="1 that are NaN or infinite"):
        Scores.tossed([0.1, bad, 0.3], [True, False, True])


def test_scores_and_coins_must_be_as_many() -> None:
    with pytest.raises(AuditError, match="2 scores for 3 coins"):
        Scores.tossed([0.1, 0.2], [True, False, True])


@pytest.mark.parametrize("wrong", [(-1.0, DELTA), (math.nan, DELTA), (math.inf, DELTA), (1.0, 1.0), (1.0, -DELTA), (1.0, math.nan)])
def test_a_claim_that_promises_nothing_is_refused(wrong: tuple[float, float]) -> None:
    with pytest.raises(AuditError, match="a claim of epsilon"):
        Claim(*wrong)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, math.nan])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    with pytest.raises(AuditError, match="a confidence of"):
        one_run(tossed_gaussian_scores(1.0, 20, seed=0), Claim(1.0, DELTA), confidence)


def test_a_hundred_thousand_canaries_are_counted_exactly() -> None:
    run = one_run(tossed_gaussian_scores(1.0, 100_000, seed=0), Claim(1.0, DELTA))
    assert 0.5 < run.epsilon < gaussian_epsilon(1.0, DELTA) and math.isfinite(run.p_value)
    assert tail(100_000, 80_000, 80_000, Claim(0.0, 0.0)) == 0 and power(100_000, 0.0) == pytest.approx(10.4, abs=0.1)


Lists = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=60)


@settings(deadline=None)
@given(pairs=Lists)
def test_guess_counts_are_even_and_fit(pairs: list[Any]) -> None:
    counts = guess_counts(len(pairs))
    assert all(count % 2 == 0 and 2 <= count <= len(pairs) for count in counts)


@settings(deadline=None)
@given(pairs=Lists, seed=st.integers(0, 99))
def test_ties_never_help_the_auditor(pairs: list[tuple[int, bool]], seed: int) -> None:
    scores, coins = [float(score) for score, _ in pairs], [coin for _, coin in pairs]
    broken = np.array(scores) + np.random.default_rng(seed).uniform(0, 0.5, size=len(scores))
    for guesses in guess_counts(len(pairs)):
        assert Scores.tossed(scores, coins).correct(guesses) <= Scores.tossed(broken, coins).correct(guesses)


@settings(deadline=None, max_examples=40)
@given(pairs=Lists, seed=st.integers(0, 99))
def test_only_the_order_of_scores_counts(pairs: list[tuple[int, bool]], seed: int) -> None:
    claim, scores, coins = Claim(1.0, DELTA), [float(score) for score, _ in pairs], [coin for _, coin in pairs]
    order = np.random.default_rng(seed).permutation(len(pairs))
    shuffled = Scores.tossed([math.exp(scores[index]) for index in order], [coins[index] for index in order])
    assert one_run(Scores.tossed(scores, coins), claim) == one_run(shuffled, claim)


@settings(deadline=None)
@given(correct=st.integers(0, 49), epsilon=st.floats(0, 5), more=st.floats(0, 3))
def test_more_right_guesses_are_less_likely_and_a_larger_epsilon_allows_more(correct: int, epsilon: float, more: float) -> None:
    assert tail(100, 50, correct + 1, Claim(epsilon, 0.0)) <= tail(100, 50, correct, Claim(epsilon, 0.0))
    assert tail(100, 50, correct, Claim(epsilon, 0.0)) <= tail(100, 50, correct, Claim(epsilon + more, 0.0)) + 1e-12
    assert tail(100, 50, correct, Claim(epsilon, 0.0)) <= tail(100, 50, correct, Claim(epsilon, 1e-3))
