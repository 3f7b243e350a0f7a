"""The pages for readers and for coding agents: what they name exists. `nox -s site` builds them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from conftest import ROOT
from test_command_line import commands

from u2export.cli import app

DOCS, README = ROOT / "docs", ROOT / "README.md"
COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
COMMANDS |= {group.name for group in app.registered_groups if group.name}


def test_the_index_leads_to_every_page() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    trees = "\n".join(re.findall(r"```{toctree}(.*?)```", index, re.DOTALL)).splitlines()
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index", "SKILL"}
    assert pages <= set(trees), f"not in docs/index.md: {sorted(pages - set(trees))}"


@pytest.mark.parametrize("name", ["llms.txt", "SKILL.md", "index.md", "research.md"])
def test_links_and_commands_exist(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (DOCS / link).is_file(), link
    called = set(re.findall(r"u2export ([a-z]+)(?= |`|$)", "\n".join(_code(text)), re.MULTILINE))
    assert called <= COMMANDS, called - COMMANDS
    assert called or name == "index.md" or name == "llms.txt"


@pytest.mark.parametrize("path", [README, *sorted(DOCS.glob("*.md"))], ids=lambda path: path.name)
def test_every_command_and_option_on_a_page_exists(path: Path) -> None:
    known = {**commands(), "trt": typer.main.get_command(app).commands["trt"]}  # type: ignore[attr-defined]
    for line in _calls(path.read_text(encoding="utf-8")):
        called = [name for name in known if f"{line} ".startswith(f"u2export {name} ")]
        assert called, line
        options = {option for one in known[max(called, key=len)].params for option in (*one.opts, *one.secondary_opts)}
        given = set(re.findall(r"(?<=[\s\[(|])--?[a-z][-a-z0-9]*", line))
        assert given <= options | {"--help", "-q", "-v"}, line


def _calls(text: str) -> Iterator[str]:
    """Give the calls of u2export in the shell blocks of a page, without comments and without other programs."""
    fence = ""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fence = "" if fence else line
        elif fence in ("```", "```sh"):
            parts = (part.strip() for part in re.split(r"&&|\s\|\s|;|`", line.partition(" # ")[0]))
            yield from (part for part in parts if part.startswith("u2export "))


def _code(text: str) -> list[str]:
    """Give blocks and spans of code; prose may follow the name of the program with any word."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return blocks + re.findall(r"`(u2export [^`]+)`", text)


def test_the_skill_says_its_name_and_when_to_use_it() -> None:
    head = re.match(r"---\nname: (\S+)\ndescription: (.+)\n---\n", Path(DOCS / "SKILL.md").read_text(encoding="utf-8"))
    assert head and head[1] == "u2export" and "Use it when" in head[2] and len(head[2]) < 1024


def test_pages_install_from_where_u2export_is() -> None:
    """It is on no package index, so that a bare name such as 'u2export[onnx]' would find nothing."""
    for path in (*DOCS.glob("*.md"), README):
        for line in re.findall(r"pip install [^`\n]*u2export\[[^`\n]*", path.read_text(encoding="utf-8")):
            assert " @ " in line, f"{path.name}: {line}"
