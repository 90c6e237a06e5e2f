import json
import math
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from trainers.metrics import by_group, classification_metrics
from trainers.report import build_report, read_events, render_html, write_model_card, write_report

CONFIG: dict[str, Any] = {
    "name": "intents",
    "task": "classify",
    "model": {"path": "org/tiny"},
    "method": {"type": "lora", "rank": 8},
    "train": {"epochs": 2.0, "learning_rate": 0.0002},
    "zero": {"stage": 2},
    "data": {"train": ["/home/alice/train.csv"]},
}
FILES = [{"path": "/home/alice/train.csv", "sha256": "ab" * 32, "rows": 90}]


def _make_start(time: float, attempt: int = 1, step: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "time": time,
        "event": "start",
        "attempt": attempt,
        "step": step,
        "workers": 4,
        "zero_stage": 2,
        "method": "lora",
        "versions": {"torch": "2.13.0"},
        "data": {"train_rows": 90, "validation_rows": 10, "files": FILES},
        "parameters": {"total": 1000, "trainable": 40},
        "choices": [{"field": "zero.stage", "value": 2, "reason": "it fits"}],
        "device": "cpu",
        **changes,
    }


def _make_step(time: float, step: int, loss: float = 1.0, **changes: Any) -> dict[str, Any]:
    values = {"tokens": 100, "tokens_per_second": 50.0, "seconds": 2.0, "padding_share": 0.1, "learning_rate": 0.01}
    return {"time": time, "event": "step", "step": step, "loss": loss, **values, **changes}


def _make_end(time: float, step: int, **changes: Any) -> dict[str, Any]:
    best = {"step": 2, "metric": "eval_loss", "value": 0.7}
    facts = {"tokens_per_second": 60.0, "peak_memory_bytes": 3 * 2**30, "padding_share": 0.2, "best": best}
    return {
        "time": time,
        "event": "end",
        "step": step,
        "status": "finished",
        "metrics": {"accuracy": 0.9},
        **facts,
        **changes,
    }


def _make_restarted_run() -> list[dict[str, Any]]:
    """Steps 1 to 4, a crash, then again from step 2 on two workers: 3, 4, 5."""
    return [
        _make_start(100),
        *(_make_step(100 + step, step, loss=5.0 - step) for step in (1, 2)),
        {"time": 102, "event": "eval", "step": 2, "metrics": {"eval_loss": 0.7, "accuracy": 0.8}},
        {"time": 102, "event": "checkpoint", "step": 2, "bytes": 10, "seconds": 0.1},
        *(_make_step(100 + step, step, loss=99.0) for step in (3, 4)),
        {"time": 104, "event": "eval", "step": 4, "metrics": {"eval_loss": 99.0}},
        {"time": 104, "event": "warning", "step": 4, "message": "slow disk"},
        _make_start(200, attempt=2, step=2, workers=2),
        *(_make_step(200 + step, step, loss=5.0 - step) for step in (3, 4, 5)),
        {"time": 205, "event": "eval", "step": 4, "metrics": {"eval_loss": 0.9}},
        _make_end(210, 5),
    ]


def _make_rich_run() -> list[dict[str, Any]]:
    labels = ["card_payment", "loan $5", "fee $3 to $9", "other"]
    probabilities = np.full((48, 4), 0.1)
    probabilities[np.arange(48), np.arange(48) * 3 % 5 % 4] = 0.7
    truth = [labels[row % 4] for row in range(48)]
    metrics = classification_metrics(truth, probabilities, labels)
    accuracy = np.array([float(row % 4 == row * 3 % 5 % 4) for row in range(48)])
    groups = ["north" if row < 20 else "south" if row < 45 else "west" for row in range(48)]
    by = {"region": by_group(groups, lambda rows: {"accuracy": accuracy[rows].mean()})}
    return [*_make_restarted_run()[:-1], _make_end(210, 5, metrics={**metrics, "by": by})]


def _write_run(folder: Path, events: list[dict[str, Any]], tail: str = "") -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + tail)
    return folder


def test_a_restarted_run_shows_each_step_once_as_last_done() -> None:
    report = build_report(CONFIG, _make_restarted_run())
    assert report["train_loss"] == [[1, 4.0], [2, 3.0], [3, 2.0], [4, 1.0], [5, 0.0]]
    assert report["eval_loss"] == [[2, 0.7], [4, 0.9]]
    assert (report["restarts"], report["steps_repeated"], report["steps"]) == (1, 2, 5)
    assert report["tokens"] == 500


def test_a_restarted_run_reports_the_workers_of_its_last_attempt_and_the_time_of_all() -> None:
    report = build_report(CONFIG, _make_restarted_run())
    assert report["workers"] == 2
    assert report["seconds"] == (104 - 100) + (210 - 200)
    assert [attempt["outcome"] for attempt in report["attempts"]] == ["interrupted", "finished"]
    assert [attempt["workers"] for attempt in report["attempts"]] == [4, 2]


def test_steps_lost_in_a_crash_are_gone_until_they_are_done_again() -> None:
    events = [_make_start(0), *(_make_step(step, step) for step in range(1, 9)), _make_start(20, attempt=2, step=5)]
    report = build_report(CONFIG, events)
    assert [step for step, _ in report["train_loss"]] == [1, 2, 3, 4, 5]
    assert (report["steps_repeated"], report["steps"], report["status"]) == (3, 5, "running")


def test_a_finished_run_reports_what_its_last_event_says() -> None:
    report = build_report(CONFIG, _make_restarted_run())
    assert (report["status"], report["name"], report["task"], report["model"]) == (
        "finished",
        "intents",
        "classify",
        "org/tiny",
    )
    assert (report["metrics"], report["best"]["step"]) == ({"accuracy": 0.9}, 2)
    assert (report["tokens_per_second"], report["padding_share"], report["peak_memory_bytes"]) == (60.0, 0.2, 3 * 2**30)
    assert report["hyperparameters"] == {block: CONFIG[block] for block in ("train", "method", "zero")}


def test_settings_left_to_us_are_shown_as_they_were_chosen() -> None:
    config = {**CONFIG, "train": {"learning_rate": "auto", "epochs": None, "seed": 0}}
    chosen = [{"field": "train.learning_rate", "value": 2e-4, "reason": ""}, {"field": "train.epochs", "value": 3.0, "reason": ""}]
    start = {**next(event for event in _make_restarted_run() if event["event"] == "start"), "choices": chosen}

    assert build_report(config, [start])["hyperparameters"]["train"] == {"learning_rate": 2e-4, "epochs": 3.0, "seed": 0}
    assert config["train"]["learning_rate"] == "auto"


def test_a_finished_run_lists_its_warnings() -> None:
    report = build_report(CONFIG, _make_restarted_run())
    assert report["warnings"] == [{"step": 4, "message": "slow disk"}]
    assert report["failure"] is None


def test_a_failed_run_says_why() -> None:
    failure = {"time": 9, "event": "failure", "step": 1, "error": "NonFiniteLoss", "message": "NaN", "hint": "lower it"}
    report = build_report(CONFIG, [_make_start(0), _make_step(5, 1), failure])
    assert report["status"] == "failed"
    assert report["failure"] == {"step": 1, "error": "NonFiniteLoss", "message": "NaN", "hint": "lower it"}


def test_a_run_that_failed_and_was_started_again_is_running_and_remembers() -> None:
    failure = {"time": 9, "event": "failure", "step": 1, "error": "OSError", "message": "disk full", "hint": ""}
    report = build_report(CONFIG, [_make_start(0), failure, _make_start(20, attempt=2)])
    assert (report["status"], report["failure"]) == ("running", None)
    assert report["attempts"][0]["reason"] == "OSError: disk full"


def test_a_failure_before_the_first_start_is_reported() -> None:
    failure = {"time": 9, "event": "failure", "step": 0, "error": "DataError", "message": "no rows", "hint": ""}
    report = build_report(CONFIG, [failure])
    assert (report["status"], report["restarts"], report["workers"]) == ("failed", 0, None)
    assert "no rows" in render_html(report)


def test_means_over_steps_are_weighted_while_the_run_goes_on() -> None:
    fast = _make_step(1, 1, tokens_per_second=100.0, seconds=1.0, mfu=0.4)
    slow = _make_step(4, 2, tokens_per_second=20.0, seconds=3.0, tokens=300, padding_share=0.3)
    report = build_report(CONFIG, [_make_start(0), fast, slow])
    assert report["tokens_per_second"] == pytest.approx((100 + 60) / 4)
    assert report["padding_share"] == pytest.approx((0.1 * 100 + 0.3 * 300) / 400)
    assert report["mfu"] == pytest.approx(0.4)


def test_a_running_run_shows_its_last_evaluation() -> None:
    report = build_report(CONFIG, _make_restarted_run()[:-1])
    assert (report["status"], report["metrics"], report["metrics_step"]) == ("running", {"eval_loss": 0.9}, 4)


def test_a_number_that_is_not_finite_becomes_null() -> None:
    end = _make_end(2, 1, metrics={"perplexity": math.inf})
    report = build_report(CONFIG, [_make_start(0), _make_step(1, 1, loss=math.nan), end])
    assert (report["train_loss"], report["metrics"]) == ([[1, None]], {"perplexity": None})
    json.dumps(report, allow_nan=False)
    assert '<h2 id="metrics">' in render_html(report)


def test_no_events_at_all_make_a_report_too() -> None:
    report = build_report(CONFIG, [])
    assert (report["status"], report["steps"], report["restarts"], report["seconds"]) == ("running", 0, 0, 0)
    assert "intents" in render_html(report)


def test_a_line_torn_by_a_crash_is_left_out(tmp_path: Path) -> None:
    events = _make_restarted_run()
    run = _write_run(tmp_path, events, tail='{"time": 211, "event": "st')
    assert read_events(run / "events.jsonl") == events


def test_a_line_torn_before_a_restart_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"time": 1, "event": "start"}\n{"time": 2, "ev\n{"time": 3, "event": "start"}\n')
    assert [event["time"] for event in read_events(path)] == [1, 3]


@pytest.mark.parametrize("line", ['{"time": 2, "ev', "[]", '{"time": 2}', "\x00\x00"])
def test_a_broken_line_elsewhere_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(f'{{"time": 1, "event": "start"}}\n\n{line}\n{{"time": 3, "event": "eval"}}\n')
    with pytest.raises(ValueError, match=re.escape(f"{path}:3: expected a JSON object")):
        read_events(path)


def test_write_report_leaves_a_report_that_can_be_read_again(tmp_path: Path) -> None:
    report = write_report(_write_run(tmp_path, _make_rich_run()))
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (tmp_path / "report.html").read_text() == render_html(report)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "events.jsonl",
        "report.html",
        "report.json",
    ]


def test_write_report_names_a_damaged_config(tmp_path: Path) -> None:
    _write_run(tmp_path, [])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: expected a resolved job in JSON"):
        write_report(tmp_path)


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = render_html(build_report(CONFIG, _make_rich_run()))
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    targets = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in targets)


def test_the_page_has_a_picture_of_everything_there_is() -> None:
    page = render_html(build_report(CONFIG, _make_rich_run()))
    assert page.count("<svg") == 5
    texts = set(re.findall(r'(?<=[>"])[^<>"]+(?=[<"])', page))
    assert {"restart", "best, step 2", "reliability diagram"} <= texts
    assert ">fee $3 to $9</text>" in page
    assert page.index("<svg") < page.index("Metrics</h2>") < page.index("Differences between groups")


def test_the_page_marks_groups_too_small_to_compare() -> None:
    page = render_html(build_report(CONFIG, _make_rich_run()))
    assert "west *" in page
    assert "fewer than 10 rows" in page


def test_classes_stand_worst_first() -> None:
    report = build_report(CONFIG, _make_rich_run())
    per_class = report["metrics"]["per_class"]
    order = sorted(per_class, key=lambda label: per_class[label]["f1"])
    table = render_html(report).split("Every class, worst first")[1].replace("<wbr>", "")
    places = [table.index(f"<td>{label}</td>") for label in order]
    assert places == sorted(places)


def test_pictures_take_their_colours_from_the_page() -> None:
    page = render_html(build_report(CONFIG, _make_rich_run()))
    assert "stroke: var(--accent)" in page
    assert "#2b628e" not in page.split("</style>", 1)[1]


def test_names_from_users_are_never_markup() -> None:
    nasty = "<img src=x onerror=alert(1)>'\"&{{ 7*7 }}"
    metrics = classification_metrics([nasty, "b"], np.array([[0.2, 0.8], [0.1, 0.9]]), [nasty, "b"])
    start = _make_start(0, method=nasty, choices=[{"field": nasty, "value": [nasty], "reason": nasty}])
    warning = {"time": 1, "event": "warning", "step": 1, "message": nasty}
    page = render_html(build_report({**CONFIG, "name": nasty}, [start, warning, _make_end(2, 1, metrics=metrics)]))
    assert "<img" not in page
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", page)[0]
    assert nasty in unescape(re.findall(r"<h1>(.*?)</h1>", page)[0])


def test_seventy_seven_classes_are_drawn_without_numbers() -> None:
    labels = [f"class_{number}" for number in range(77)]
    metrics = classification_metrics(labels, np.eye(77), labels)
    page = render_html(build_report(CONFIG, [_make_start(0), _make_end(1, 0, metrics=metrics)]))
    picture = page[page.index("<svg") : page.index("</svg>")]
    assert {f">{label}</text>" in picture for label in labels} == {True}
    assert ">1</text>" not in picture


def test_labels_the_drawing_font_lacks_are_left_to_the_browser() -> None:
    metrics = classification_metrics(["貸款", "卡"], np.eye(2), ["貸款", "卡"])
    page = render_html(build_report(CONFIG, [_make_start(0), _make_end(1, 0, metrics=metrics)]))
    assert ">貸款</text>" in page


def _make_card(folder: Path, events: list[dict[str, Any]], **changes: Any) -> str:
    report = build_report(CONFIG, events)
    write_model_card(folder, report, **{"base_model": "org/tiny", "library": "peft", **changes})
    return (folder / "README.md").read_text()


def test_the_card_of_an_adapter_says_how_to_load_it(tmp_path: Path) -> None:
    card = _make_card(tmp_path, _make_rich_run())
    header = yaml.safe_load(card.split("---\n")[1])
    assert header == {
        "base_model": "org/tiny",
        "library_name": "peft",
        "tags": ["consortium", "finance", "classify", "lora"],
    }
    assert 'AutoModelForSequenceClassification.from_pretrained("org/tiny", num_labels=4)' in card
    assert "PeftModel.from_pretrained(base, folder)" in card
    compile(card.split("```python\n")[1].split("```")[0], "card", "exec")


def test_the_card_of_whole_weights_needs_no_peft(tmp_path: Path) -> None:
    card = _make_card(tmp_path, _make_restarted_run(), library="transformers")
    assert "model = AutoModelForSequenceClassification.from_pretrained(folder)" in card
    assert "peft" not in card.lower()


def test_the_card_gives_data_metrics_versions_and_limits(tmp_path: Path) -> None:
    card = _make_card(tmp_path, _make_restarted_run())
    assert f"| train.csv | 90 | {'ab' * 32} |" in card
    assert "| accuracy | 0.9000 | share of rows given the right label |" in card
    assert "| train.learning_rate | 0.0002 |" in card
    assert "| torch | 2.13.0 |" in card
    assert "not privacy-protected:" in card


def test_the_card_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    files = [{"path": r"C:\Users\alice\rows.csv", "sha256": "cd" * 32, "rows": 1}, *FILES]
    start = _make_start(0, data={"train_rows": 1, "validation_rows": 0, "files": files})
    config = {
        **CONFIG,
        "train": {"terms": "/home/alice/terms.txt", "more": ["~/alice/a.txt", "../alice/b.txt"], "rate": "1/2"},
    }
    write_model_card(tmp_path, build_report(config, [start]), base_model="/models/tiny", library="peft")
    card = (tmp_path / "README.md").read_text()
    assert "alice" not in card
    assert "| train.more | a.txt, b.txt |" in card
    assert "| train.rate | 1/2 |" in card
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "/models/tiny"


def test_a_name_cannot_break_out_of_the_header_or_a_table_of_the_card(tmp_path: Path) -> None:
    start = _make_start(0, versions={"a|b\n# c": "<b>1</b>"}, method='lora"\nlicense: mit')
    card = _make_card(tmp_path, [start], base_model='x"\nlicense: mit')
    header = yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
    assert (header["base_model"], header["tags"][-1]) == ('x"\nlicense: mit', 'lora"\nlicense: mit')
    assert "license" not in header
    assert r"| a\|b # c | \<b\>1\</b\> |" in card


def test_another_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected peft or transformers, got 'keras'"):
        _make_card(tmp_path, [], library="keras")
