import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainers.metrics import by_group, classification_metrics, generation_metrics, label_metrics, perplexity

TRUTH, PREDICTED = list("aaabbc"), list("aabbcc")


def _make_probabilities(*rows: tuple[float, ...]) -> Any:
    return np.array(rows, dtype=np.float32)


def test_label_metrics_equal_what_one_counts_by_hand() -> None:
    metrics = label_metrics(TRUTH, PREDICTED, list("abc"))
    assert metrics["confusion_matrix"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    assert metrics["macro_precision"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert metrics["macro_recall"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert metrics["macro_f1"] == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    assert metrics["per_class"]["b"] == {
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "false_positive_rate": 0.25,
        "support": 2,
    }


def test_a_class_absent_from_the_data_leaves_the_macro_scores_alone() -> None:
    metrics = label_metrics(TRUTH, PREDICTED, list("abcd"))
    assert metrics["macro_f1"] == label_metrics(TRUTH, PREDICTED, list("abc"))["macro_f1"]
    absent = metrics["per_class"]["d"]
    assert (absent["precision"], absent["recall"], absent["f1"], absent["support"]) == (None, None, None, 0)
    assert absent["false_positive_rate"] == 0.0


def test_a_class_never_predicted_counts_as_zero_in_the_mean() -> None:
    metrics = label_metrics(["a", "b"], ["a", "a"], ["a", "b"])
    assert metrics["per_class"]["b"]["precision"] is None
    assert (metrics["per_class"]["b"]["recall"], metrics["per_class"]["b"]["f1"]) == (0.0, 0.0)
    assert metrics["macro_precision"] == pytest.approx(0.25)
    assert metrics["macro_f1"] == pytest.approx(1 / 3)


def test_the_false_positive_rate_is_undefined_when_every_row_is_of_the_class() -> None:
    metrics = label_metrics(["a", "a"], ["a", "b"], ["a", "b"])
    assert metrics["per_class"]["a"]["false_positive_rate"] is None
    assert metrics["per_class"]["b"]["false_positive_rate"] == 0.5


def test_the_confusion_matrix_follows_the_order_of_the_labels_given() -> None:
    assert label_metrics(["a", "a", "b"], ["b", "a", "b"], ["b", "a"])["confusion_matrix"] == [[1, 0], [1, 1]]


def test_calibration_error_and_brier_score_equal_what_one_computes_by_hand() -> None:
    probabilities = _make_probabilities((0.9, 0.1), (0.9, 0.1), (0.65, 0.35), (0.35, 0.65))
    metrics = classification_metrics(["a", "b", "a", "b"], probabilities, ["a", "b"])
    assert metrics["expected_calibration_error"] == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * abs(1 - 0.65))
    assert metrics["brier_score"] == pytest.approx((0.02 + 1.62 + 0.245 + 0.245) / 4)
    assert metrics["accuracy"] == 0.75


def test_there_are_fifteen_bins_and_an_empty_one_has_no_accuracy() -> None:
    bins = classification_metrics(["a", "a"], _make_probabilities((1, 0), (0.3, 0.7)), ["a", "b"])["calibration_bins"]
    assert len(bins) == 15
    assert bins[0] == {"confidence": None, "accuracy": None, "count": 0}
    assert bins[14] == {"confidence": 1.0, "accuracy": 1.0, "count": 1}
    assert bins[10] == {"confidence": pytest.approx(0.7), "accuracy": 0.0, "count": 1}


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    bins = classification_metrics(["a"], np.array([[0.4, 0.3, 0.3]]), ["a", "b", "c"])["calibration_bins"]
    assert [number for number, entry in enumerate(bins) if entry["count"]] == [5]


def test_columns_of_probabilities_are_in_the_order_of_the_labels() -> None:
    metrics = classification_metrics(["z", "a"], _make_probabilities((1, 0), (0, 1)), ["z", "a"])
    assert (metrics["accuracy"], metrics["brier_score"], metrics["expected_calibration_error"]) == (1.0, 0.0, 0.0)


def test_classification_metrics_are_plain_json() -> None:
    metrics = classification_metrics(["a", "a"], _make_probabilities((1, 0, 0), (1, 0, 0)), ["a", "b", "c"])
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


@pytest.mark.parametrize(
    ("truth", "predicted", "labels", "message"),
    [
        (["a"], ["a", "b"], ["a", "b"], "predicted: expected 1 rows, got 2"),
        (["a", "x"], ["a", "a"], ["a", "b"], r"truth: expected one of 2 labels \('a', 'b'\), got 'x'"),
        (["a"], ["y"], ["a", "b"], "predicted: expected one of .* got 'y'"),
        (["a"], ["a"], ["a", "a"], "labels: expected each one once"),
        ([], [], ["a"], "at least one row"),
    ],
)
def test_a_mistake_is_named(truth: list[str], predicted: list[str], labels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_metrics(truth, predicted, labels)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((0.5, 0.25, 0.25), "expected 1 rows and 2 classes, got shape"),
        ((3.0, -2.0), "expected rows that sum to 1"),
        ((4.0, 2.0), "expected rows that sum to 1"),
        ((math.nan, 0.5), "expected finite numbers, got nan in row 0"),
    ],
)
def test_what_is_no_probability_is_refused(row: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_metrics(["a"], _make_probabilities(row), ["a", "b"])


def test_rouge_equals_what_one_counts_by_hand() -> None:
    metrics = generation_metrics(["the cat sat", "yes"], ["the cat ran", " yes\n"])
    assert metrics["exact_match"] == 0.5
    assert metrics["rouge1"] == pytest.approx((2 / 3 + 1) / 2)
    assert metrics["rouge2"] == pytest.approx((1 / 2 + 0) / 2)
    assert metrics["rougeL"] == pytest.approx((2 / 3 + 1) / 2)
    assert "term_coverage" not in metrics


def test_bleu_equals_what_one_computes_by_hand() -> None:
    bleu = generation_metrics(["the cat sat on the mat"], ["the cat sat on mat"])["bleu"]
    brevity = math.exp(1 - 6 / 5)
    assert bleu == pytest.approx(100 * brevity * (1 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4))


def test_rouge_knows_words_of_other_scripts() -> None:
    metrics = generation_metrics(["η τράπεζα πληρώνει"], ["η τράπεζα"])
    assert metrics["rouge1"] == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))


def test_required_terms_count_as_whole_words_in_any_case() -> None:
    texts = ["EBITDA and net\nincome rose 5 %.", "capital markets", "nothing asked"]
    terms = [["ebitda", "Net income", "5 %"], ["cap", "capital"], []]
    metrics = generation_metrics(texts, texts, terms)
    assert metrics["term_coverage"] == pytest.approx(4 / 5)
    assert metrics["rows_with_terms"] == 2


def test_term_coverage_is_undefined_without_terms() -> None:
    metrics = generation_metrics(["a"], ["a"], [[]])
    assert (metrics["term_coverage"], metrics["rows_with_terms"]) == (None, 0)


def test_generated_texts_must_match_their_references_in_number() -> None:
    with pytest.raises(ValueError, match="hypotheses: expected 2 rows, got 1"):
        generation_metrics(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="required_terms: expected 1 rows, got 2"):
        generation_metrics(["a"], ["a"], [["x"], ["y"]])


def test_perplexity_is_the_exponential_of_the_mean_loss() -> None:
    assert perplexity(2 * math.log(3), 2) == pytest.approx(3)
    assert perplexity(1e6, 1) == math.inf
    assert math.isnan(perplexity(0.0, 0))


def test_groups_are_compared_by_their_scalar_metrics() -> None:
    groups = ["de"] * 12 + ["fr"] * 10 + ["it"] * 3
    correct = [1] * 9 + [0] * 3 + [1] * 5 + [0] * 5 + [1] * 3
    result = by_group(groups, lambda rows: {"accuracy": sum(correct[row] for row in rows) / len(rows), "labels": ["x"]})
    assert result["groups"] == {
        "de": {"rows": 12, "accuracy": 0.75},
        "fr": {"rows": 10, "accuracy": 0.5},
        "it": {"rows": 3, "accuracy": 1.0},
    }
    assert result["gaps"] == {"accuracy": {"gap": 0.25, "highest": "de", "lowest": "fr"}}
    assert result["too_small"] == ["it"]


def test_undefined_metrics_and_counts_make_no_gap() -> None:
    values = {0: {"loss": math.nan, "tokens": 7, "f1": np.float32(0.5)}, 1: {"loss": 1.0, "tokens": 9, "f1": None}}
    result = by_group(["a"] * 10 + ["b"] * 10, lambda rows: values[rows[0] // 10])
    assert result["groups"]["a"] == {"rows": 10, "loss": None, "tokens": 7, "f1": 0.5}
    assert result["gaps"] == {}
    json.dumps(result, allow_nan=False)


def test_importing_the_module_loads_no_metric_library() -> None:
    heavy = {"sklearn", "sacrebleu", "rouge_score", "torch"}
    code = f"import sys, trainers.metrics; sys.exit(bool({heavy} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
