"""Lists and numbers as they are given on the command line."""

import math

from trainers.errors import ConfigError

_MOST = 1_000_000
"""More than there is of anything that is counted here, and few enough to compute with."""


def parts(option: str, text: str | None, *, example: str) -> list[str]:
    """`a,b` in its parts; none where the option was not given. Raises ConfigError."""
    if text is None:
        return []
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise ConfigError(f"{option} {text!r}: expected values with commas between them", f"as in {option} {example}")
    return found


def numbers(option: str, text: str | None, *, example: str, least: int = 1) -> list[int]:
    """Whole numbers in order, each once; none where the option was not given. Raises ConfigError."""
    found = set()
    for part in parts(option, text, example=example):
        if not part.isdecimal() or len(part) > len(str(_MOST)) or not least <= int(part) <= _MOST:
            raise ConfigError(f"{option} {part[:20]}: expected a whole number from {least} to {_MOST:,}", f"as in {option} {example}")
        found.add(int(part))
    return sorted(found)


def beyond(projected: list[int], counts: list[int]) -> None:
    """Raises ConfigError unless all of `projected` are more than all of `counts`."""
    if projected and counts and min(projected) <= max(counts):
        raise ConfigError(f"--project {min(projected)}: expected more than {max(counts)}", "numbers up to that are looked at without it")


def finite(option: str, value: float | None) -> None:
    """Raises ConfigError for what is infinite or not a number."""
    if value is not None and not math.isfinite(value):
        raise ConfigError(f"{option} {value}: expected a finite number", f"as in {option} 10")
