"""Tables on a terminal."""

from rich.console import Console
from rich.table import Table


def print_whole(table: Table) -> None:
    """As wide as it is: lines that the terminal breaks can still be read, cells cut short cannot."""
    out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    wide = out.options.update(width=1000)
    out.width = max(out.width, out.measure(table, options=wide).maximum)
    out.print(table)
