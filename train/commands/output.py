"""The style of the commands' output: plain lines, and tables without a frame."""

import rich.box
import rich.console
import rich.table


def say(console: rich.console.Console, text: str) -> None:
    """Print a line as it is, without markup or line breaks."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def table(title: str) -> rich.table.Table:
    """Return an empty table without a frame."""
    return rich.table.Table(
        title=title,
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
