"""The pages for readers and for coding agents: what they name exists. `nox -s site` builds them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT

from u2export.cli import app

DOCS = ROOT / "docs"
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


def _code(text: str) -> list[str]:
    """Give blocks and spans of code; prose may follow the name of the program with any word."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return blocks + re.findall(r"`(u2export [^`]+)`", text)


def test_the_skill_says_its_name_and_when_to_use_it() -> None:
    head = re.match(r"---\nname: (\S+)\ndescription: (.+)\n---\n", Path(DOCS / "SKILL.md").read_text(encoding="utf-8"))
    assert head and head[1] == "u2export" and "Use it when" in head[2] and len(head[2]) < 1024
