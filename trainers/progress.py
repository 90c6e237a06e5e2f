"""The human's view of a run: a bar with loss, tokens/s and remaining time on a terminal, a line now and then elsewhere. On stderr."""

import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_SECONDS = 10.0


class Display:
    """Listens to a run's events."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._steps = 0
        self._last_line = 0.0

    def on_event(self, event: dict[str, Any]) -> None:
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(event)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _on_choice(self, choice: dict[str, Any]) -> None:
        chosen = escape(f"{choice['field']}: {choice['value']}")
        self._console.print(f"  [cyan]{chosen}[/]  [dim]{escape(choice['reason'])}[/]")

    def _on_start(self, event: dict[str, Any]) -> None:
        self.close()
        self._steps = event["steps"]
        for choice in event["choices"]:
            self._on_choice(choice)
        data, parameters = event.get("data"), event["parameters"]
        rows = f"{data['train_rows']} rows to train on, {data['validation_rows']} held out" if data else "private rows"
        labels = f", {data['labels']} labels" if data and data["labels"] else ""
        self._console.print(
            f"  {rows}{labels}; "
            f"{event['method']}, {parameters['trainable']:,} of {parameters['total']:,} parameters; "
            f"{event['workers']} worker(s), ZeRO-{event['zero_stage']}"
        )
        if event["step"]:
            self._console.print(f"  continues after step {event['step']}")
        if self._console.is_terminal:
            columns = (TextColumn("  step"), MofNCompleteColumn(), BarColumn(24), TextColumn("{task.fields[facts]}"), TimeElapsedColumn())
            self._bar = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=self._console)
            self._task = self._bar.add_task("", total=self._steps, completed=event["step"], facts="")
            self._bar.start()

    def _on_step(self, event: dict[str, Any]) -> None:
        if "loss" in event:
            facts = f"loss {event['loss']:.4f}  {event['tokens_per_second']:,.0f} tokens/s"
        else:
            facts = "charged to the ledger; losses are private"
        if event.get("mfu"):
            facts += f"  MFU {event['mfu']:.1%}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=event["step"], facts=facts)
        elif time.monotonic() - self._last_line > _LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(f"  step {event['step']}/{self._steps}  {facts}")

    def _on_eval(self, event: dict[str, Any]) -> None:
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in event["metrics"].items() if isinstance(value, (int, float)))
        self._console.print(f"  step {event['step']}: {metrics}")

    def _on_round(self, event: dict[str, Any]) -> None:
        took = f" in {event['seconds']:.1f} s" if "seconds" in event else ""
        self._console.print(f"  round {event['round']}, attempt {event['attempt']}: {event['steps']} steps{took}")

    def _on_warning(self, event: dict[str, Any]) -> None:
        self._console.print(f"  [yellow]warning:[/] {escape(event['message'])}")

    def _on_end(self, event: dict[str, Any]) -> None:
        self.close()
        self._console.print(f"  {event['status'].replace('_', ' ')} after {event['step']} steps: {escape(event['output'])}")
