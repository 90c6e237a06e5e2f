import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.segment import Segment

from consortium.inspect import show
from trainers.data.inspect import Bin, Inspection, Lengths, Shown

INSPECTION = Inspection(
    max_length=64,
    rows=1234,
    good=1200,
    held_out=240,
    examples=1200,
    tokens=40000,
    learnt_tokens=10000,
    lengths=Lengths(3, 20, 60, 102, [Bin(3, 52, 1000), Bin(53, 102, 234)]),
    labels={},
    truncated=5,
    dropped={"empty field": 20, "over length": 14},
    listed=["rows.csv:7: empty field: 'text'", "rows.csv:9: over length: 70 tokens, cut to 64"],
    shown=[Shown("rows.csv:2", [("<s>[INST] Why? [/INST]", False), (" Because.</s>", True)], "")],
)


def _show(inspection: Inspection, width: int = 100) -> str:
    console = Console(record=True, width=width, file=io.StringIO())
    show(inspection, console)
    return console.export_text()


def _styles(inspection: Inspection) -> list[Segment]:
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    show(inspection, console)
    return console._record_buffer


def _line_with(text: str, word: str) -> str:
    return next(line for line in text.splitlines() if word in line)


@pytest.mark.parametrize(
    ("fact", "line"),
    [
        ("rows read", "1,234"),
        ("rows good", "1,200  240 of them held out for validation"),
        ("rows dropped", "34  2.8%"),
        ("rows truncated", "5  to 64 tokens"),
        ("tokens learnt", "10,000  25.0%"),
    ],
)
def test_the_facts_are_in_the_table(fact: str, line: str) -> None:
    assert _line_with(_show(INSPECTION), fact).removeprefix(fact).strip() == line


def test_the_histogram_has_bars_in_proportion_and_marks_the_limit() -> None:
    text = _show(INSPECTION)

    first, second = _line_with(text, "3-52"), _line_with(text, "53-102")
    assert (first.count("█"), second.count("█")) == (40, 9)
    assert first.split()[-1] == "1,000"
    assert second.rstrip().endswith("234  < data.max_length 64")
    assert "min 3   median 20   95% 60   max 102" in text


def test_a_bin_of_few_rows_is_not_an_empty_one() -> None:
    lengths = Lengths(1, 1, 1, 30, [Bin(1, 10, 10_000), Bin(11, 20, 0), Bin(21, 30, 1)])

    text = _show(replace(INSPECTION, lengths=lengths))

    assert "▏" in _line_with(text, "21-30") and "▏" not in _line_with(text, "11-20")


def test_reasons_are_counted_and_listed_and_the_rest_is_mentioned() -> None:
    text = _show(INSPECTION)

    assert _line_with(text, " empty field ").split() == ["20", "dropped", "empty", "field"]
    assert _line_with(text, " over length").split() == ["14", "dropped", "over", "length"]
    assert "  5  truncated  over length" in text
    assert "rows.csv:7: empty field: 'text'" in text
    assert "and 37 more" in text


def test_what_is_learnt_is_green_and_underlined_and_the_rest_dim() -> None:
    segments = {segment.text: segment.style for segment in _styles(INSPECTION)}

    learnt, given = segments[" Because.</s>"], segments["<s>[INST] Why? [/INST]"]
    assert learnt is not None and learnt.underline and learnt.color is not None and learnt.color.name == "green"
    assert given is not None and given.dim and not given.underline


def test_brackets_in_the_data_are_text_and_not_markup() -> None:
    shown = [Shown("rows.csv:2", [("[bold]rates[/bold] [/nothing]", True)], "[red]x")]

    text = _show(replace(INSPECTION, shown=shown, labels={"[red]x": 1}, listed=["a:1: [/]"]))

    assert "[bold]rates[/bold] [/nothing]" in text
    assert text.count("[red]x") == 2
    assert "a:1: [/]" in text


def test_escape_sequences_in_the_data_do_not_reach_the_terminal() -> None:
    shown = [Shown("rows.csv:2", [("\x1b[2J\x1b]0;title\x07gone", True)], "\x1b[31mcard")]
    console = Console(file=io.StringIO(), width=100)

    show(replace(INSPECTION, shown=shown), console)

    assert isinstance(console.file, io.StringIO)
    assert "\x1b" not in console.file.getvalue() and "\x07" not in console.file.getvalue()
    assert r"\x1b[2J\x1b]0;title\x07gone" in console.file.getvalue()


def test_long_pieces_are_shortened_in_their_middle() -> None:
    piece = "start " + "x" * 5000 + " end"

    text = _show(replace(INSPECTION, shown=[Shown("rows.csv:2", [(piece, False)], "")]))

    assert "start" in text and "xxx end" in text
    assert "[... 4,310 characters ...]" in " ".join(text.split())
    assert text.count("x") < 800


def test_labels_are_bars_and_many_of_them_are_summed_up() -> None:
    labels = {f"intent_{number:02}": 100 - number for number in range(40)}

    text = _show(replace(INSPECTION, labels=labels))

    assert "Labels (40)" in text
    assert _line_with(text, "intent_00").count("█") == 40
    assert "intent_29" in text and "intent_30" not in text
    assert _line_with(text, "10 more").split()[-1] == str(sum(100 - number for number in range(30, 40)))
    assert "tokens learnt" not in text


def test_an_example_to_classify_is_shown_with_its_class() -> None:
    assert "class: card" in _show(replace(INSPECTION, shown=[Shown("rows.csv:2", [("Where?", False)], "card")]))


def test_nothing_read_and_nothing_wrong_print_too() -> None:
    empty = Inspection(64, 0, 0, 0, 0, 0, 0, None, {}, 0, {}, [], [])

    text = _show(empty)

    assert _line_with(text, "rows read").split()[-1] == "0"
    assert "Rows dropped or truncated" not in text and "Example" not in text


def test_paths_are_not_broken_on_a_narrow_terminal() -> None:
    line = "a/long/path/to/the/file/of/a/bank/tickets.jsonl:12: empty field: 'text'"

    assert line in _show(replace(INSPECTION, listed=[line]), width=40)
