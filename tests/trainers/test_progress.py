import io
from typing import Any

import pytest
from rich.console import Console

from trainers.events import PUBLIC
from trainers.progress import Display

START: dict[str, Any] = {
    "event": "start",
    "step": 0,
    "steps": 20,
    "choices": [{"field": "model.dtype", "value": "float32", "reason": "CPU: most have no fast bfloat16"}],
    "data": {"train_rows": 800, "validation_rows": 200, "labels": 7},
    "method": "lora",
    "parameters": {"trainable": 1234, "total": 5678901},
    "workers": 2,
    "zero_stage": 2,
}
EVAL = {"event": "eval", "step": 10, "metrics": {"eval_loss": 0.5, "macro_f1": 0.91, "perplexity": None}}
END = {"event": "end", "step": 20, "status": "stopped_early", "output": "runs/cards/adapter"}


def _step(step: int, **fields: Any) -> dict[str, Any]:
    return {"event": "step", "step": step, "loss": 1.25, "tokens_per_second": 12345.6} | fields


def _shown(*events: dict[str, Any], terminal: bool = False) -> str:
    """What is on the console after these events, without colours and cursor movements."""
    stream = io.StringIO()
    display = Display(Console(file=stream, force_terminal=terminal, color_system=None, width=400, highlight=False, soft_wrap=True))
    for event in events:
        display.on_event(event)
    display.close()
    return stream.getvalue()


def test_of_a_private_run_is_shown_what_is_public() -> None:
    events = [START, _step(5), EVAL, END]
    public = [
        {name: event[name] for name in ("event", *(PUBLIC[event["event"]] or ())) if name in event} for event in (START, _step(5), END)
    ]

    shown = _shown(*public)

    assert "  private rows; lora, 1,234 of 5,678,901 parameters; 2 worker(s), ZeRO-2" in shown
    assert "step 5/20  charged to the ledger; losses are private" in shown and "stopped early after 20 steps" in shown
    assert all(str(number) in _shown(*events) and str(number) not in shown for number in (800, 1.25, 0.91))


def test_the_start_says_what_was_chosen_and_what_is_trained_on_what() -> None:
    first, second = _shown(START).splitlines()
    assert first == "  model.dtype: float32  CPU: most have no fast bfloat16"
    assert second == "  800 rows to train on, 200 held out, 7 labels; lora, 1,234 of 5,678,901 parameters; 2 worker(s), ZeRO-2"


def test_a_task_without_labels_names_none_and_a_resumed_run_says_from_where() -> None:
    shown = _shown(START | {"step": 12, "data": START["data"] | {"labels": 0}})
    assert "labels" not in shown and "  continues after step 12\n" in shown


def test_elsewhere_than_on_a_terminal_a_step_is_a_line_now_and_then() -> None:
    shown = _shown(START, _step(1), _step(2), _step(3))
    assert "  step 1/20  loss 1.2500  12,346 tokens/s\n" in shown
    assert "step 2" not in shown and "step 3" not in shown


def test_the_share_of_what_the_gpu_can_do_is_shown_where_it_is_known() -> None:
    assert "tokens/s  MFU 51.2%" in _shown(START, _step(1, mfu=0.512))


def test_an_evaluation_shows_its_numbers_and_leaves_out_what_is_none() -> None:
    assert _shown(START, EVAL).splitlines()[-1] == "  step 10: eval_loss 0.5000  macro_f1 0.9100"


def test_the_end_says_how_and_where() -> None:
    assert _shown(START, END).splitlines()[-1] == "  stopped early after 20 steps: runs/cards/adapter"


def test_a_choice_made_before_the_start_is_shown_when_it_is_made() -> None:
    choice = {"event": "choice", "field": "cluster.workers", "value": 2, "reason": "one for each GPU"}
    assert _shown(choice) == "  cluster.workers: 2  one for each GPU\n"


def test_on_a_terminal_a_bar_counts_the_steps() -> None:
    shown = _shown(START, _step(1), _step(5, loss=0.75), terminal=True)
    assert "5/20" in shown and "loss 0.7500  12,346 tokens/s" in shown and "left" in shown and "━" in shown
    assert "step 5/20" not in shown  # the line for consoles without a bar


def test_on_a_terminal_evaluations_stand_above_the_bar_and_the_end_takes_it_away() -> None:
    shown = _shown(START, _step(10), EVAL, END, terminal=True)
    assert shown.index("eval_loss 0.5000") < shown.index("stopped early")
    assert "━" not in shown[shown.index("stopped early") :]


def test_a_second_start_begins_the_bar_again_where_the_run_goes_on() -> None:
    shown = _shown(START, _step(9), START | {"step": 5}, _step(6), terminal=True)
    assert " 6/20" in shown[shown.index("continues after step 5") :]


@pytest.mark.parametrize("text", ["[/]", "[red]", "a [b] c", "[/home/me/runs]", "\\[bold]", "[link=x]y[/link]"])
@pytest.mark.parametrize("terminal", [False, True])
def test_brackets_in_a_users_text_are_text(text: str, terminal: bool) -> None:
    choice = {"event": "choice", "field": "data.max_length", "value": text, "reason": f"why {text}"}
    warning = {"event": "warning", "step": 3, "message": f"careful {text}"}
    shown = _shown(START, choice, warning, END | {"output": text}, terminal=terminal)
    assert f"data.max_length: {text}  why {text}" in shown
    assert f"warning: careful {text}" in shown
    assert f"20 steps: {text}" in shown


def test_events_it_knows_nothing_of_are_passed_over() -> None:
    assert _shown({"event": "checkpoint", "step": 1}, {"event": "trained"}) == ""


def test_the_display_of_a_run_writes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display()
    display.on_event(END)
    display.close()
    out, error = capsys.readouterr()
    assert out == "" and "runs/cards/adapter" in error
