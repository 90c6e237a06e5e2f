"""Metrics as functions of plain values: no torch, and every library imported where it is used.

Results go to JSON as they are: plain ints and floats, and None where a metric is undefined (never NaN or infinity).
"""

import math
import numbers
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainers.errors import DataError

Array = npt.NDArray[Any]

CALIBRATION_BINS = 15
SMALLEST_GROUP = 10
"""Rows below which a group is reported but not compared: one row would move its accuracy by more than 0.1."""


def classification_metrics(truth: Sequence[str], probabilities: Array, labels: Sequence[str]) -> dict[str, Any]:
    """`label_metrics` of the most probable label, and how far the probabilities can be believed.

    `probabilities` is (rows, classes), its columns in the order of `labels`. Adds `expected_calibration_error` (15
    equal-width bins, Guo et al. 2017, section 2), `brier_score` (Brier 1950: squared error summed over classes, 0 to 2,
    mean over rows) and `calibration_bins`, all 15, lowest first; an empty bin has count 0 and None for the rest.
    Raises DataError, a ValueError, for rows or columns that do not match, unknown labels and what is no probability.
    """
    values = _checked_probabilities(probabilities, rows=len(truth), classes=len(labels))
    metrics = label_metrics(truth, [labels[column] for column in values.argmax(axis=1)], labels)
    columns = _positions(truth, labels, "truth")
    bins = _calibration_bins(values.max(axis=1), values.argmax(axis=1) == columns)
    gaps = (entry["count"] * abs(entry["accuracy"] - entry["confidence"]) for entry in bins if entry["count"])
    one_hot = np.eye(len(labels))[columns]
    return {
        **metrics,
        "expected_calibration_error": sum(gaps) / len(truth),
        "brier_score": float(((values - one_hot) ** 2).sum(axis=1).mean()),
        "calibration_bins": bins,
    }


def label_metrics(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro and per-class scores, and the confusion matrix (rows: truth; both in the order of `labels`).

    Macro scores are scikit-learn's defaults: the mean over the classes that occur in `truth` or `predicted`, with 0 for
    what is undefined. In `per_class` the undefined is None: precision of a class never predicted, recall of a class
    without rows, F1 of a class with neither, false-positive rate of a class that every row belongs to.
    Raises DataError, a ValueError, for lengths that do not match, unknown labels and no rows at all.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    _check_lengths(truth, predicted, "predicted")
    true, found = _positions(truth, labels, "truth"), _positions(predicted, labels, "predicted")
    matrix = confusion_matrix(true, found, labels=range(len(labels)))
    macro = precision_recall_fscore_support(true, found, average="macro", zero_division=0.0)
    scores = precision_recall_fscore_support(true, found, labels=range(len(labels)), zero_division=np.nan)[:3]
    per_class = zip(*scores, _false_positive_rates(matrix), matrix.sum(axis=1), strict=True)
    names = ("precision", "recall", "f1", "false_positive_rate")
    return {
        "accuracy": float((true == found).mean()),
        "macro_precision": float(macro[0]),
        "macro_recall": float(macro[1]),
        "macro_f1": float(macro[2]),
        "per_class": {
            label: {**{name: _defined(rate) for name, rate in zip(names, rates, strict=True)}, "support": int(support)}
            for label, (*rates, support) in zip(labels, per_class, strict=True)
        },
        "labels": list(labels),
        "confusion_matrix": matrix.tolist(),
    }


def generation_metrics(
    references: Sequence[str], hypotheses: Sequence[str], required_terms: Sequence[Sequence[str]] | None = None
) -> dict[str, Any]:
    """How near generated texts come to their references, one reference a row.

    `exact_match` ignores white space at both ends. `bleu` is sacreBLEU's corpus score, 0 to 100 (Post 2018). `rouge1`,
    `rouge2`, `rougeL` are mean F-measures (Lin 2004), unstemmed; words are runs of letters and digits of any script.
    With `required_terms`, a list for each row: `term_coverage` is the share of them that the row's text uses as whole
    words, in whatever case (None when there are none), and `rows_with_terms` the number of rows that ask for any.
    Raises DataError, a ValueError, for lengths that do not match and no rows at all.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu

    _check_lengths(references, hypotheses, "hypotheses")
    pairs = list(zip(references, hypotheses, strict=True))
    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, tokenizer=_Words())
    rouge = [scorer.score(reference, hypothesis) for reference, hypothesis in pairs]
    metrics: dict[str, Any] = {
        "exact_match": sum(reference.strip() == hypothesis.strip() for reference, hypothesis in pairs) / len(pairs),
        "bleu": float(corpus_bleu(list(hypotheses), [list(references)], force=True).score),
        **{name: sum(float(row[name].fmeasure) for row in rouge) / len(pairs) for name in names},
    }
    if required_terms is not None:
        metrics |= _term_metrics(hypotheses, required_terms)
    return metrics


def perplexity(loss_sum: float, tokens: int) -> float:
    """exp of the mean loss a token, in nats; infinity where that overflows, NaN when there is no token."""
    try:
        return math.exp(loss_sum / tokens) if tokens else math.nan
    except OverflowError:
        return math.inf


def by_group(groups: Sequence[str], evaluate: Callable[[list[int]], dict[str, Any]]) -> dict[str, Any]:
    """The same metrics for each group of rows, and how far apart the groups are.

    `groups` names each row's group; `evaluate` turns row numbers into metrics, of which numbers are kept. Whole numbers
    are counts: reported, not compared. Groups under 10 rows are reported too, left out of `gaps` and listed in
    `too_small`. A metric has a gap when two of the groups compared have it.
    """
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(groups):
        rows.setdefault(name, []).append(row)
    metrics = {name: _scalars(evaluate(rows[name])) for name in sorted(rows)}
    compared = {name: values for name, values in metrics.items() if len(rows[name]) >= SMALLEST_GROUP}
    names = dict.fromkeys(metric for values in compared.values() for metric in values)
    gaps = {metric: _gap({name: values.get(metric) for name, values in compared.items()}) for metric in names}
    return {
        "groups": {name: {**values, "rows": len(rows[name])} for name, values in metrics.items()},
        "gaps": {metric: gap for metric, gap in gaps.items() if gap},
        "too_small": [name for name in metrics if name not in compared],
    }


class _Words:
    """rouge-score's own words are ASCII only and would score a text in Greek or Chinese 0."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


def _term_metrics(hypotheses: Sequence[str], required_terms: Sequence[Sequence[str]]) -> dict[str, Any]:
    _check_lengths(hypotheses, required_terms, "required_terms")
    wanted = [[term for term in terms if term.strip()] for terms in required_terms]
    used = [_uses(text, term) for text, terms in zip(hypotheses, wanted, strict=True) for term in terms]
    coverage = sum(used) / len(used) if used else None
    return {"term_coverage": coverage, "rows_with_terms": sum(bool(terms) for terms in wanted)}


def _uses(text: str, term: str) -> bool:
    """Whether `term` stands alone in `text`; `\\b` would miss a term that ends in a sign, as `5 %`."""
    words = r"\s+".join(re.escape(word) for word in term.split())
    return re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE) is not None


def _calibration_bins(confidence: Array, correct: Array) -> list[dict[str, Any]]:
    """Bin m holds confidences in ((m - 1) / 15, m / 15]."""
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    where = np.digitize(confidence, edges[1:-1], right=True)
    bins: list[dict[str, Any]] = []
    for number in range(CALIBRATION_BINS):
        inside = where == number
        means = [float(values[inside].mean()) if inside.any() else None for values in (confidence, correct)]
        bins.append({"confidence": means[0], "accuracy": means[1], "count": int(inside.sum())})
    return bins


def _false_positive_rates(matrix: Array) -> list[float]:
    """For each class, the share of the other classes' rows taken for it (Fawcett 2006); NaN without such rows."""
    others = matrix.sum() - matrix.sum(axis=1)
    mistaken = matrix.sum(axis=0) - matrix.diagonal()
    return [float(wrong / count) if count else math.nan for wrong, count in zip(mistaken, others, strict=True)]


def _gap(values: dict[str, Any]) -> dict[str, Any] | None:
    known = {name: value for name, value in values.items() if isinstance(value, float)}
    if len(known) < 2:
        return None
    highest, lowest = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
    return {"gap": known[highest] - known[lowest], "highest": highest, "lowest": lowest}


def _scalars(metrics: dict[str, Any]) -> dict[str, Any]:
    """The numbers among `metrics`, as Python's own; None stays: what is undefined here may not be elsewhere."""
    scalars: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, bool):
            continue
        if value is None or isinstance(value, numbers.Integral):
            scalars[name] = None if value is None else int(value)
        elif isinstance(value, numbers.Real):
            scalars[name] = _defined(float(value))
    return scalars


def _defined(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _positions(names: Sequence[str], labels: Sequence[str], what: str) -> Array:
    """Each name's place in `labels`."""
    if len(set(labels)) != len(labels):
        raise DataError(f"labels: expected each one once, got {list(labels)}", "remove the duplicates")
    place = {label: number for number, label in enumerate(labels)}
    unknown = sorted({str(name) for name in names if name not in place})
    if unknown:
        raise DataError(
            f"{what}: expected one of {len(labels)} labels ({_some(labels)}), got {_some(unknown)}",
            "add the label to the training data, or correct it in these rows",
        )
    return np.array([place[name] for name in names], dtype=np.int64)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")


def _check_lengths(first: Sequence[Any], second: Sequence[Any], what: str) -> None:
    if not len(first):
        raise DataError("metrics: expected at least one row, got none", "give rows to evaluate on")
    if len(first) != len(second):
        raise DataError(f"{what}: expected {len(first)} rows, got {len(second)}", "give one entry a row, in order")


def _checked_probabilities(probabilities: Array, *, rows: int, classes: int) -> Array:
    values = np.asarray(probabilities, dtype=np.float64)
    if values.shape != (rows, classes):
        raise DataError(
            f"probabilities: expected {rows} rows and {classes} classes, got shape {values.shape}",
            "give one row for each true label and one column for each entry of labels",
        )
    if not rows:
        raise DataError("metrics: expected at least one row, got none", "give rows to evaluate on")
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise DataError(
            f"probabilities: expected finite numbers, got {values[row].max()} in row {row}",
            "the model has diverged: lower the learning rate",
        )
    if values.min() < 0 or abs(values.sum(axis=1) - 1).max() > 0.02:
        raise DataError(
            f"probabilities: expected rows that sum to 1, got values from {values.min():.3g} to {values.max():.3g}",
            "apply softmax to the logits, in float32",
        )
    return values
