import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from privacy.attack import auc, exposure, tpr_at_fpr
from privacy.audit import Scores
from privacy.errors import AuditError


def _make_scores(mu: float, inside: int, outside: int, seed: int) -> Scores:
    rng = np.random.default_rng(seed)
    return Scores(rng.normal(mu, size=inside), rng.normal(size=outside))


@settings(deadline=None)
@given(inside=st.lists(st.integers(-3, 3), min_size=1, max_size=30), outside=st.lists(st.integers(-3, 3), min_size=1, max_size=30))
def test_the_auc_is_scikit_learns(inside: list[int], outside: list[int]) -> None:
    from sklearn.metrics import roc_auc_score

    found = auc(Scores(np.array(inside), np.array(outside)))
    assert found.value == pytest.approx(float(roc_auc_score([1] * len(inside) + [0] * len(outside), inside + outside)))
    assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize("mu", [0.0, 0.5, 1.5])
def test_the_aucs_interval_covers_the_truth_as_often_as_stated(mu: float) -> None:
    truth = float(norm.cdf(mu / math.sqrt(2)))
    found = [auc(_make_scores(mu, 100, 150, seed), 0.9) for seed in range(500)]
    missed = sum(not estimate.low <= truth <= estimate.high for estimate in found)
    assert 0.05 < missed / 500 < 0.16


def test_an_attack_that_is_never_wrong_has_an_interval_of_some_width() -> None:
    found = auc(Scores(np.ones(100), np.zeros(300)))
    assert (found.value, found.high) == (1, 1) and found.low == pytest.approx(0.025 ** (1 / 100))


def test_scores_all_tied_are_chance() -> None:
    found = auc(Scores(np.zeros(100), np.zeros(100)))
    assert found.value == 0.5 and 0.35 < found.low < 0.5 < found.high < 0.65


def test_the_true_positive_rate_at_one_per_cent_is_counted_beyond_the_outsiders_best() -> None:
    scores = Scores(np.array([97.5, 98.5, 99.5, 3.0]), np.arange(100.0))
    assert tpr_at_fpr(scores).value == 0.5  # above 98, which one outside passes
    assert tpr_at_fpr(scores, 0.0).value == 0.25
    assert tpr_at_fpr(Scores(np.ones(50), np.ones(50))).value == 0


def test_the_rates_interval_covers_the_rate_at_its_threshold_as_often_as_stated() -> None:
    missed = 0
    for seed in range(500):
        scores = _make_scores(1.0, 200, 200, seed)
        truth = float(norm.sf(np.sort(scores.outside)[-3] - 1.0))
        found = tpr_at_fpr(scores, 0.01, 0.9)
        missed += not found.low <= truth <= found.high
    assert binom.sf(missed - 1, 500, 0.1) > 1e-6 and missed > 10


@pytest.mark.parametrize(("inside", "outside"), [(0, 5), (5, 0), (0, 0)])
def test_a_side_without_scores_is_refused(inside: int, outside: int) -> None:
    for rate in (auc, tpr_at_fpr):
        with pytest.raises(AuditError, match="at least one on each side"):
            rate(Scores(np.zeros(inside), np.zeros(outside)))


def test_exposure_counts_the_bits_by_which_a_secret_stands_out() -> None:
    assert exposure(1, 10**10) == pytest.approx(math.log2(10**10))
    assert exposure(1024, 1024) == 0 and exposure(512, 1024) == 1
    assert np.mean([exposure(rank, 4096) for rank in range(1, 4097)]) == pytest.approx(1 / math.log(2), abs=0.01)


@pytest.mark.parametrize("rank", [0, -1, 11])
def test_a_rank_outside_the_space_is_refused(rank: int) -> None:
    with pytest.raises(AuditError, match="of 10 secrets"):
        exposure(rank, 10)


def test_a_false_positive_rate_that_is_none_is_refused() -> None:
    with pytest.raises(AuditError, match="a false positive rate of"):
        tpr_at_fpr(_make_scores(0, 5, 5, seed=0), 1.0)
