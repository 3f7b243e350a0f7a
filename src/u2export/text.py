"""Text of others in output: names of files, layers and devices, and messages. One function for each format.

A name may hold anything: line breaks, escape codes of a terminal, commands of a CI service, formulas, markup.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

# Bytes of names that are not UTF-8 are these characters in Python; standard output writes them as the same bytes.
NAME_BYTES = range(0xDC80, 0xDD00)
# Control and format characters (ESC, marks that reverse the direction of text), line and paragraph separators, lone
# surrogates. Joiners are format characters too, but emoji and some scripts need them.
HARMFUL = {"Cc", "Cf", "Zl", "Zp", "Cs"}
JOINERS = "\u200c\u200d"
# Source: GitHub's runner, src/Runner.Common/ActionCommand.cs. A line that begins with `::name` is a command, and
# `##[name]` is one anywhere in a line.
_COMMAND = re.compile(r":(?=:[A-Za-z])|#(?=#\[)")
# Source: OWASP, CSV Injection. A spreadsheet takes a cell with such a beginning for a formula.
FORMULA = ("=", "+", "-", "@")


def one_line(text: object) -> str:
    r"""Return text as one line that neither a terminal nor GitHub's runner takes for more than text.

    Control characters become escapes such as `\n` and `\x1b`. A backslash parts the marks of workflow commands.

    Example:
        >>> print(one_line("a\n::error::b"))
        a\n:\:error::b
    """
    line = str(text)
    if not (line.isascii() and line.isprintable()):
        line = "".join(map(_visible, line))
    return _COMMAND.sub(r"\g<0>\\", line)


def _visible(character: str) -> str:
    harmless = unicodedata.category(character) not in HARMFUL or character in JOINERS
    if harmless or ord(character) in NAME_BYTES:
        return character
    return character.encode("unicode_escape").decode("ascii")


def rich_text(text: object, style: str = "") -> Text:
    """Return text for a table or a line of rich, which does not look for markup in it."""
    from rich.text import Text

    return Text(one_line(text), style=style)


def csv_cell(value: object) -> object:
    """Return a value for a cell of CSV; numbers stay, and a text that could be a formula gets an apostrophe."""
    if not isinstance(value, str):
        return value
    line = one_line(value)
    return f"'{line}" if line.lstrip().startswith(FORMULA) else line


def xml_text(text: object) -> str:
    """Return text for XML 1.0, which has no control characters, surrogates or non-characters, not even escaped."""
    return re.sub("[\ud800-\udfff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", one_line(text))


def json_text(data: Any, indent: int = 2) -> str:
    """Return JSON for standard output, with the same values; what `one_line` changes is an escape of JSON here."""
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    if not text.isascii():
        text = "".join(c if unicodedata.category(c) not in HARMFUL or c == "\n" else json.dumps(c)[1:-1] for c in text)
    return text.replace("##[", "#\\u0023[")
