"""`consortium data inspect` on a terminal: counts, lengths, labels, rows dropped or cut, and examples with what is learnt in green."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainers.data.inspect import Inspection, Lengths, Shown

LEARNT = "green underline"
_BAR = 40
_LABELS = 30
_PIECE = 700


def show(inspection: Inspection, console: Console) -> None:
    """Print all that was found, examples last."""
    console.print(_facts(inspection))
    if inspection.lengths:
        _heading("Tokens of a row", console)
        console.print(_histogram(inspection.lengths, inspection.max_length))
    if inspection.labels:
        _heading(f"Labels ({len(inspection.labels)})", console)
        console.print(_labels(inspection.labels))
    if inspection.listed:
        _heading("Rows dropped or truncated", console)
        console.print(_reasons(inspection))
        _print_listed(inspection, console)
    if inspection.shown:
        _heading("Examples, with what is learnt underlined", console)
    for example in inspection.shown:
        _print_example(example, console)


def _heading(title: str, console: Console) -> None:
    console.print()
    console.print(Text(title, style="bold"))


def _facts(inspection: Inspection) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column()
    bad = inspection.rows - inspection.good
    rows = [
        ("rows read", inspection.rows, ""),
        ("rows good", inspection.good, f"{inspection.held_out:,} of them held out for validation"),
        ("rows dropped", bad, _percent(bad, inspection.rows)),
        ("rows truncated", inspection.truncated, f"to {inspection.max_length:,} tokens" if inspection.truncated else ""),
        ("examples", inspection.examples, f"of at most {inspection.max_length:,} tokens"),
        ("tokens", inspection.tokens, ""),
    ]
    if not inspection.labels:
        rows.append(("tokens learnt", inspection.learnt_tokens, _percent(inspection.learnt_tokens, inspection.tokens)))
    for name, number, remark in rows:
        table.add_row(name, f"{number:,}", remark, style="red" if name == "rows dropped" and number else "")
    return table


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _histogram(lengths: Lengths, max_length: int) -> Table:
    most = max(bin.rows for bin in lengths.histogram)
    table = _bars(caption=f"min {lengths.min:,}   median {lengths.median:,}   95% {lengths.p95:,}   max {lengths.max:,}")
    limit = next((bin for bin in lengths.histogram if bin.high > max_length), None)
    for bin in lengths.histogram:
        remark = f"< data.max_length {max_length:,}" if bin is limit else ""
        table.add_row(f"{bin.low:,}-{bin.high:,}", _bar(bin.rows, most), f"{bin.rows:,}", remark)
    return table


def _labels(labels: dict[str, int]) -> Table:
    table = _bars()
    for label, rows in list(labels.items())[:_LABELS]:
        table.add_row(Text(_printable(label)), _bar(rows, max(labels.values())), f"{rows:,}", "")
    if len(labels) > _LABELS:
        table.add_row(f"{len(labels) - _LABELS} more", "", f"{sum(list(labels.values())[_LABELS:]):,}", "")
    return table


def _bars(caption: str | None = None) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1), caption=caption, caption_justify="left", caption_style="dim")
    table.add_column(justify="right")
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="yellow")
    return table


def _bar(rows: int, most: int) -> Text:
    return Text("█" * round(_BAR * rows / most) or ("▏" if rows else ""), style="cyan")


def _reasons(inspection: Inspection) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(justify="right")
    for kind, rows in inspection.dropped.items():
        table.add_row(f"{rows:,}", "dropped", kind)
    if inspection.truncated:
        table.add_row(f"{inspection.truncated:,}", "truncated", "over length")
    return table


def _print_listed(inspection: Inspection, console: Console) -> None:
    for line in inspection.listed:
        console.print(Text(_printable(line), style="dim"), soft_wrap=True)
    unlisted = inspection.rows - inspection.good + inspection.truncated - len(inspection.listed)
    if unlisted:
        console.print(Text(f"and {unlisted:,} more", style="dim"))


def _print_example(example: Shown, console: Console) -> None:
    text = Text()
    text.append(f"{_printable(example.origin)}\n", style="cyan")
    for piece, learnt in example.pieces:
        text.append(_printable(_shorten(piece)), style=LEARNT if learnt else "dim")
    text.rstrip()
    console.print(text)
    if example.label:
        console.print(Text.assemble("class: ", (_printable(example.label), LEARNT)))


def _shorten(piece: str) -> str:
    half = _PIECE // 2
    return piece if len(piece) <= _PIECE else f"{piece[:half]} [... {len(piece) - 2 * half:,} characters ...] {piece[-half:]}"


def _printable(text: str) -> str:
    """Escape sequences of the data must not reach the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
