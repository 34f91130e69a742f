"""Tables in Markdown."""

from collections.abc import Sequence


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the columns as wide as their longest."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    line = lambda cells: "| " + " | ".join(map(str.ljust, cells, widths)) + " |"
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join((line(head), f"|{rule}|", *map(line, rows)))
