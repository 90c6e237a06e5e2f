"""The command as a user runs it, in a process of its own."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import helpers, warm
from trainers.config import Task
from trainers.data.synthetic import DemoData, write_demo_data
from trainers.errors import ConfigError, DataError


def _consortium(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return warm.run("consortium", *arguments, stdin=stdin, environment={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    return write_demo_data(tmp_path_factory.mktemp("data"), tickets=200, documents=10)


def _write_job(folder: Path, model: Path | str, data: DemoData, extra: str = "") -> Path:
    path = folder / "job.yaml"
    path.write_text(
        f"task: sft\nmodel: {model}\ndata: {{train: {data.tickets_train}, group_by: customer_id, over_length: truncate}}\n"
        f"train: {{max_steps: 3, global_batch_size: 4}}\noutput: {folder}/runs\n{extra}"
    )
    return path


@pytest.fixture(scope="module")
def run_dir(llama_dir: Path, data: DemoData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained by the command itself, on Ray."""
    folder = tmp_path_factory.mktemp("job")
    command = [sys.executable, "-m", "consortium", "train", _write_job(folder, llama_dir, data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=helpers.REPOSITORY)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "job"


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, consortium.main; sys.argv = ['consortium', '--help']\ntry: consortium.main.main()\nexcept SystemExit: pass\n"
    heavy = "print(sorted(set(sys.modules) & {'torch', 'ray', 'flwr', 'transformers', 'datasets', 'deepspeed', 'numpy', 'pydantic'}))"
    output = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, check=True, cwd=helpers.REPOSITORY).stdout
    assert "Fine-tune language models" in output and output.splitlines()[-1] == "[]"


def test_help_says_what_an_argument_is() -> None:
    assert "Run directory" in _consortium("export", "--help").stdout


def test_train_prints_what_was_chosen_with_its_reason_and_the_result(run_dir: Path) -> None:
    report = json.loads((run_dir / "report.json").read_text())
    assert report["status"] == "finished" and any(choice["field"] == "zero.stage" and choice["reason"] for choice in report["choices"])


def test_an_interrupted_run_says_how_to_go_on(llama_dir: Path, data: DemoData, tmp_path: Path) -> None:
    job = _write_job(tmp_path, llama_dir, data)
    command = [sys.executable, "-m", "consortium", "train", str(job), "--set", "train.max_steps=5000"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=helpers.REPOSITORY)
    events, deadline = tmp_path / "runs" / "job" / "events.jsonl", time.monotonic() + 120
    while not (events.exists() and '"step"' in events.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)

    running.send_signal(signal.SIGINT)

    assert "hint: consortium resume" in running.communicate(timeout=60)[1]
    assert running.returncode == 130


def test_training_again_under_the_same_name_is_refused(run_dir: Path) -> None:
    again = _consortium("train", run_dir.parents[1] / "job.yaml")
    assert (again.returncode, again.stderr.count("\n")) == (2, 2)
    assert "already holds a run" in again.stderr and "--resume" in again.stderr


def test_evaluate_prints_json_with_groups_and_label_accuracy(run_dir: Path, data: DemoData, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    done = _consortium("evaluate", run_dir, "--data", data.tickets_test, "--label", "intent", "--by", "segment", "--limit", 8,
                       "--review", sheet, "--terms", "terms", "--json")  # fmt: skip
    metrics = json.loads(done.stdout)
    assert metrics["rows"] == 8 and metrics["perplexity"] > 1 and 0 <= metrics["accuracy"] <= 1 and "bleu" in metrics
    assert set(metrics["by"]["segment"]["groups"]) <= {"retail", "student", "business", "premium"}
    assert sheet.read_text().startswith("row,input,expected,answer,correct (y/n)") and sheet.stat().st_mode & 0o777 == 0o600


def test_predict_answers_each_line_and_abstains_below_a_confidence(run_dir: Path) -> None:
    lines = _consortium("predict", run_dir, "--abstain-below", "1", stdin='I lost my card\n{"text": "which fee?"}\n').stdout.splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["abstained"] for answer in answers] == [True, True] and answers[0]["input"] == "I lost my card"


def test_a_line_longer_than_the_model_reads_is_not_answered_and_those_beside_it_are(run_dir: Path) -> None:
    lines = _consortium("predict", run_dir, stdin="my card is lost " * 20_000 + "\nwhich fee?\n").stdout.splitlines()
    long, short = (json.loads(line) for line in lines)
    assert long["answer"] is None and long["abstained"] and long["unread_tokens"] > 10_000
    assert short["answer"] is not None and "unread_tokens" not in short


def test_a_line_that_cannot_be_answered_is_named_and_not_shown(run_dir: Path) -> None:
    done = _consortium("predict", run_dir, stdin='a secret text\n\n{"text": 3, "note": "secret"}\n')
    assert done.returncode == 2 and "-:3: expected a text or prompt" in done.stderr
    assert "secret" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("options", [("--model", "somewhere"), ("--task", "classify")])
def test_inspect_refuses_what_the_job_file_says_already(llama_dir: Path, data: DemoData, tmp_path: Path, options: tuple[str, str]) -> None:
    done = _consortium("data", "inspect", data.tickets_test, "--job", _write_job(tmp_path, llama_dir, data), *options)
    assert done.returncode == 2 and f"{options[0]} and --job exclude each other" in done.stderr


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    from consortium.evaluation import _chunks

    (tmp_path / "lines.txt").write_bytes(b"fine\r\n\n\xff\n")
    with pytest.raises(DataError, match=r"lines\.txt:3: not UTF-8"):
        list(_chunks(str(tmp_path / "lines.txt"), 64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--by", "nowhere"), "--by nowhere: no such column"),
        (("--label", "nowhere"), "--label nowhere: no such column"),
        (("--review", "/nowhere/sheet.csv"), "--review /nowhere/sheet.csv: No such file"),
    ],
)
def test_what_cannot_be_evaluated_is_told_before_the_weights_are_loaded(
    run_dir: Path, data: DemoData, monkeypatch: pytest.MonkeyPatch, options: tuple[str, str], message: str
) -> None:
    from consortium import evaluation

    monkeypatch.setattr(evaluation, "load_target", None)
    arguments: dict[str, object] = dict.fromkeys(("by", "label", "terms", "review", "limit"))
    name, value = options[0].removeprefix("--"), Path(options[1]) if options[0] == "--review" else options[1]
    with pytest.raises((ConfigError, DataError), match=message):
        evaluation.evaluate_model(run_dir, data.tickets_test, **arguments | {name: value}, generate=False, base=False, as_json=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(("task", "option"), [("classify", "--label"), ("classify", "--generate"), ("pretrain", "--review")])
def test_an_option_that_would_do_nothing_is_refused(task: Task, option: str) -> None:
    from consortium.evaluation import _check_asked

    options = dict.fromkeys(("--label", "--terms", "--generate", "--review"))
    _check_asked(task, options)
    with pytest.raises(ConfigError, match=f"{option}: the model"):
        _check_asked(task, options | {option: "x"})


def test_metrics_without_a_value_are_null_in_json() -> None:
    from consortium.evaluation import _finite

    assert _finite({"perplexity": float("inf"), "by": {"x": float("nan")}, "rows": 2}) == {"perplexity": None, "by": {"x": None}, "rows": 2}


def test_the_table_of_classes_holds_whole_names_and_counts_those_without_rows() -> None:
    from rich.console import Console

    from consortium.evaluation import show_metrics

    scores = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "false_positive_rate": 0.0, "support": 4}
    name = "balance_not_updated_after_bank_transfer"
    console = Console(width=80, record=True, file=io.StringIO())
    show_metrics({"rows": 4, "per_class": {name: scores, "other": scores | {"f1": None, "support": 0}}}, console)
    shown = console.export_text()
    assert name in shown and "1 that occur neither in the rows nor in the answers" in shown


def test_export_to_where_nothing_can_be_written_is_one_line(tmp_path: Path) -> None:
    from consortium.evaluation import export_model

    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--output .*/file/model: "):
        export_model(tmp_path, tmp_path / "file" / "model", merge=False)


def test_export_merges_the_adapter_into_a_model_that_loads(run_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    done = _consortium("export", run_dir, "--merge", "--output", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_data_inspect_shows_rows_and_what_is_learnt(llama_dir: Path, data: DemoData) -> None:
    shown = _consortium("data", "inspect", data.tickets_test, "--model", llama_dir).stdout
    assert "rows" in shown and "learn" in shown


def test_init_writes_a_job_that_only_lacks_a_model(tmp_path: Path) -> None:
    assert _consortium("init", tmp_path / "new").returncode == 0
    refused = _consortium("train", tmp_path / "new" / "job.yaml", "--set", f"output={tmp_path}")
    assert refused.returncode == 2 and "no directory /models/Llama-3.1-8B" in refused.stderr


def test_init_leaves_a_folder_with_files_in_it_alone(tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_text("mine")
    refused = _consortium("init", tmp_path)
    assert refused.returncode == 2 and "is not empty" in refused.stderr
    assert (tmp_path / "terms.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("model.path=/nowhere", "no directory /nowhere", "config.json"),
        ("cluster.workers=0", "cluster.workers", "commented job file"),
        ("cluster.gpus_per_worker=1", "the cluster has", "gpus_per_worker: 0"),
        ("train.learning_rat=1", "did you mean train.learning_rate?", "commented job file"),
        ("data.train=nowhere.jsonl", "no such file", "relative to the job file"),
    ],
)
def test_bad_input_is_a_line_and_a_hint_and_exit_code_2(
    llama_dir: Path, data: DemoData, tmp_path: Path, override: str, message: str, hint: str
) -> None:
    done = _consortium("train", _write_job(tmp_path, llama_dir, data), "--set", override)
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert message in error and hint in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resume", "/nowhere"), "is no run directory"),
        (("evaluate", "/nowhere", "--data", "x.jsonl"), "/nowhere: no such file"),
        (("predict", "/nowhere"), "/nowhere: no such file"),
        (("train", "/nowhere.yaml"), "No such file"),
    ],
)
def test_a_wrong_path_is_a_line_and_exit_code_2(arguments: tuple[str, ...], message: str) -> None:
    done = _consortium(*arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
