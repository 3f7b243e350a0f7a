"""Text and YAML of files that other tools wrote, read within limits of size, of depth and of aliases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from u2export.errors import Unavailable, UserError
from u2export.files import decoded
from u2export.install import how_to_install

LARGEST = 256 * 2**20  # bytes; a larger file does not hold samples
# Limits of YAML. Reading YAML takes thousands of times as long as reading JSON, and each alias repeats a whole part.
YAML_LARGEST = 2 * 2**20  # characters
YAML_DEEPEST = 50
YAML_ALIASED = 10_000  # values behind aliases, each alias written out
YAML_SCALAR = 1000  # characters; the time to convert a longer number grows with the square of its length


def read_text(path: Path) -> str:
    """Return the text of a file that a tool wrote: lines end in "\\n", and damaged characters become U+FFFD.

    The file is UTF-8, or what its byte order mark says (see `u2export.files.decoded`).

    Raises:
        UserError: the file is missing, cannot be read, or is larger than LARGEST.
    """
    hint = "give the file that the tool wrote"
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST >> 20} MiB", hint)
        text = decoded(path.read_bytes(), "replace")
        return text.replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise UserError(f"no such file: {path}", hint) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", hint) from None


def read_json(text: str) -> Any:
    """Return the data of a JSON text. Half characters, such as "\\ud800" alone, become U+FFFD: no file can hold them.

    Raises:
        ValueError: the text is not JSON.
        RecursionError: it is nested too deep.
    """
    data = json.loads(text)
    if "\\ud" not in text.lower():
        return data
    return json.loads(
        json.dumps(data, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )


def read_yaml(text: str) -> Any:
    """Return the data of a YAML document.

    Raises:
        ValueError: the text is not YAML, or it is beyond a limit.
        Unavailable: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise Unavailable("reading YAML needs PyYAML", how_to_install("imports")) from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is about ten times as fast
    if len(text) > YAML_LARGEST:
        raise ValueError(f"more than {YAML_LARGEST >> 20} MiB of YAML")
    try:
        _check_yaml(yaml, yaml.parse(text, Loader=loader))
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {str(error).splitlines()[0]}") from None


def _check_yaml(yaml: Any, events: Any) -> None:
    """Check the limits before anything is built, from the events of the parser.

    Raises:
        ValueError: the document is beyond a limit.
    """
    sizes: dict[str, int] = {}  # nodes that each anchor stands for
    open_parts: list[tuple[str | None, int]] = []  # anchor of each open part, and the nodes before it
    nodes = aliased = 0
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_parts.pop()
            if anchor:
                sizes[anchor] = nodes - before
        elif isinstance(event, yaml.CollectionStartEvent):
            open_parts.append((event.anchor, nodes))
            sizes.pop(event.anchor, None)
            nodes += 1
        elif isinstance(event, yaml.ScalarEvent):
            if len(event.value) > YAML_SCALAR:
                raise ValueError(f"a value of more than {YAML_SCALAR} characters")
            nodes += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"the alias *{event.anchor} stands for nothing, or for a part that holds it")
            nodes += sizes[event.anchor]
            aliased += sizes[event.anchor]
            if aliased > YAML_ALIASED:
                raise ValueError(f"its aliases stand for more than {YAML_ALIASED:,} values")
        if len(open_parts) > YAML_DEEPEST:
            raise ValueError(f"more than {YAML_DEEPEST} levels")
