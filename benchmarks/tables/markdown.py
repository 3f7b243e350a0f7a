"""The one writer of Markdown tables: columns and cells become a table of GitHub Flavored Markdown.

Source: GitHub Flavored Markdown Spec 0.29, section 4.10 (tables) and 2.4 (backslash escapes).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from u2export.text import one_line

_MARKS = {"l": ":--", "r": "--:"}
# Markup that text could start by accident: code, emphasis, a new column, a link, a heading, a quotation, a list.
_MARKUP = re.compile(r"[\\`*|]|~(?=~)|(?<=\])[(\[:]|(?<![^\W_])_|_(?![^\W_])|^(?:#|>|[-+](?=\s))")
_NUMBERED = re.compile(r"^\d+(?=[.)]\s)")
_ENTITY = re.compile(r"&(?=#?\w+;)")


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, on one line.

    The result is safe in a cell of a table and in a list item. An address such as https://… stays a link.
    """
    line = one_line(" ".join(text.splitlines()))
    line = _ENTITY.sub("&amp;", _NUMBERED.sub(r"\g<0>\\", _MARKUP.sub(r"\\\g<0>", line)))
    return line.replace("<", "&lt;")


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    """Return a table, one line for the titles and one for each row; the last line has no newline.

    Args:
        titles: one for each column.
        rows: plain text of every cell; this function escapes it.
        align: one letter for each column, "l" for left or "r" for right; numbers stand right.

    Raises:
        ValueError: a row or `align` has another number of columns than `titles`.
    """
    lines = [[*map(escaped, titles)], [_MARKS[letter] for letter in align]]
    lines += [[*map(escaped, row)] for row in rows]
    if any(len(line) != len(titles) for line in lines):
        raise ValueError(f"every row of this table needs {len(titles)} cells")
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
