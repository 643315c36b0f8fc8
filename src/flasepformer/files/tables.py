"""Tables for people."""

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Return a table in Markdown, without a newline at its end.

    >>> markdown_table(["model", "dB"], [["default", "7.93"]])
    '| model | dB |\n| --- | --- |\n| default | 7.93 |'
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
