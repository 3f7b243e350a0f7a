"""What is the same in every command: `--json`, `-q` and `-v`, exit codes, hints for wrong words, whole names."""

from __future__ import annotations

import ast
import json
import logging
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer.main
from builders import ANY_MASKS, measured_row, pictures, report
from conftest import ROOT, Cli, two_lines

from u2export.cli import app
from u2export.commands.bench import _kept
from u2export.commands.parsing import MEANT, Command, without_levels
from u2export.exporters.trt.recipe import Recipe

ANY = ",".join(f"{name}={value}" for name, value in ANY_MASKS.items())
SMALL = ("--weights", "random-u2netp", "--size", "32", "--budget", ANY)


def commands(group: Any = None, name: str = "") -> dict[str, Any]:
    """Every command of the command line, by the words that call it."""
    group = group or typer.main.get_command(app)
    found = {}
    for word, command in group.commands.items():
        words = f"{name} {word}".strip()
        found.update({words: command} if not hasattr(command, "commands") else commands(command, words))
    return found


@pytest.fixture(scope="module")
def prepared(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """A small fp16 export where nothing builds its engine, into a folder whose name a shell would split."""
    pytest.importorskip("onnxsim")
    return cli("trt", *SMALL, "--runtime", "tensorrt", "--out", tmp_path_factory.mktemp("recipes") / "a b")


@pytest.fixture(scope="module")
def recipe(prepared: subprocess.CompletedProcess[str]) -> Path:
    return Path(prepared.stdout.splitlines()[1])


def test_every_command_takes_json_and_is_read_the_same_way() -> None:
    for words, command in commands().items():
        assert isinstance(command, Command), words
        if words != "predict":
            assert any("--json" in p.opts for p in command.params) or words in ("trt cache", "trt trust"), words


def test_words_that_people_try_lead_to_commands(cli: Cli) -> None:
    known = {*commands(), "trt"}
    assert not [word for word in MEANT.values() if word not in known]
    for wrong, right in (("predikt", "'predict'"), ("tflite", "'litert'"), ("download", "'weights pull'")):
        said = cli(wrong, env={"COLUMNS": "120"})
        assert said.returncode == 2 and f"Did you mean {right}?" in said.stderr, said.stderr


def test_json_goes_to_standard_output_or_to_a_file(cli: Cli, tmp_path: Path) -> None:
    bare, dash = cli("weights", "list", "--json"), cli("weights", "list", "--json", "-")
    assert json.loads(bare.stdout) == json.loads(dash.stdout) and bare.stdout
    named = cli("weights", "list", "--json", tmp_path / "list.json")
    assert json.loads((tmp_path / "list.json").read_text()) == json.loads(bare.stdout)
    assert "licence" in named.stdout and str(tmp_path / "list.json") in named.stderr


def test_a_file_behind_json_is_not_taken_from_the_arguments(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    model, record = recipe.with_name(recipe.name.replace(".recipe.json", ".onnx")), tmp_path / "out.json"
    before = model.read_bytes()
    shown = json.loads(cli("inspect", "--json", model).stdout)
    beside = model.with_name(f"{model.name}.json")
    assert json.loads(cli("inspect", "--json", beside).stdout) == shown and beside.is_file()
    assert cli("inspect", "--json", record, model).returncode == 0
    assert json.loads(record.read_text()) == shown and model.read_bytes() == before


def test_verdicts_of_several_formats_go_to_as_many_files(cli: Cli, tmp_path: Path) -> None:
    results, accepted = tmp_path / "r.json", tmp_path / "b.json"
    report(measured_row("a.onnx")).save(results)
    updated = cli("baseline", "update", results, "--baseline", accepted, "--json")
    assert json.loads(updated.stdout) == {"baseline": str(accepted), "changes": []}
    words = ("check", results, "--baseline", accepted)
    both = ("--format", "junit", "--format", "markdown")
    two_lines(cli(*words, *both, "--out", tmp_path / "one"), "1 --out for 2 formats", code=2)
    two_lines(cli(*words, "--out", tmp_path / "one"), "1 --out for 0 formats", code=2)
    assert not (tmp_path / "one").exists()
    done = cli(*words, *both, "--out", tmp_path / "x.xml", "--out", tmp_path / "x.md")
    assert done.returncode == 0 and done.stdout.split() == [str(tmp_path / "x.xml"), str(tmp_path / "x.md")]
    assert "<testsuite" in (tmp_path / "x.xml").read_text() and "|" in (tmp_path / "x.md").read_text()
    assert json.loads(cli(*words, "--json", "-").stdout)["outcome"] == "pass"


def test_levels_stand_anywhere(cli: Cli, tmp_path: Path) -> None:
    photos = pictures(tmp_path / "few", 3)
    assert "only 3 photos" in cli("calib", "check", photos).stderr
    assert not cli("calib", "check", photos, "-q").stderr
    root, level = logging.getLogger(), logging.getLogger().level
    try:
        assert without_levels(["a", "-vv", "--", "-q"]) == ["a", "--", "-q"] and root.level == logging.DEBUG
    finally:
        root.setLevel(level)


def test_calib_check_warns_below_16_photos(cli: Cli, tmp_path: Path) -> None:
    for count, warned in ((15, True), (16, False)):
        said = cli("calib", "check", pictures(tmp_path / str(count), count), "--size", "32")
        assert ("held back" in said.stderr) is warned, said.stderr


def test_an_interrupted_bench_says_what_it_kept() -> None:
    assert _kept(Path("r.json"), False) == _kept(None, False) == (
        "interrupted before anything was measured", "run the command again")  # fmt: skip
    assert "is in r.json" in _kept(Path("r.json"), True)[0] and "--resume" in _kept(Path("r.json"), True)[1]
    assert "nothing was kept" in _kept(None, True)[0] and "--json FILE" in _kept(None, True)[1]


def test_wrong_values_are_wrong_usage(cli: Cli, tmp_path: Path) -> None:
    for words, problem in (
        (("onnx", "--size", "0"), "0x0"), (("ort", "--int8"), "calibration photos"),
        (("coreml", "--palette", "5"), "palettes of 5"), (("trt", "--target", "sm999x"), "sm999x"),
        (("table", tmp_path, "--check"), "--check"),
    ):  # fmt: skip
        two_lines(cli(*words), problem, code=2)
    two_lines(cli("table", tmp_path / "gone.json"), "gone.json", code=1)


def test_a_recipe_is_shown_with_ready_commands(cli: Cli, recipe: Path) -> None:
    shown = cli("recipe", "show", recipe)
    assert shown.returncode == 0 and shown.stdout == cli("inspect", recipe).stdout
    assert "convolutions: 119 fp16" in shown.stdout
    assert f"u2export trt build '{recipe}' --runtime rtx --target sm86" in shown.stdout
    told = json.loads(cli("recipe", "show", recipe, "--json").stdout)
    for command in told["trtexec"].values():
        assert f"    {command}\n" in shown.stdout


def test_trt_without_a_builder_says_how_to_build(prepared: subprocess.CompletedProcess[str], recipe: Path) -> None:
    assert prepared.returncode == 1 and "u2export: prepared, not built: " in prepared.stderr
    assert recipe.name == "random-u2netp-32-trt-fp16.recipe.json"
    assert "trtexec --onnx=random-u2netp-32-trt-fp16.onnx --fp16" in prepared.stderr
    assert "TensorRT-RTX, which builds without a GPU" in prepared.stderr and "--prepare-only" in prepared.stderr
    assert f"u2export trt build '{recipe}'" in prepared.stderr


def test_a_refused_file_lies_apart_with_its_report(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("onnxsim")
    small = ("--weights", "random-u2netp", "--size", "32", "--out", tmp_path)
    two_lines(cli("trt", *small, "--fp16", "--budget", "mae=0.0000001", "-q"), "more than allowed")
    assert [path.name for path in tmp_path.iterdir()] == ["refused"]
    record = json.loads((tmp_path / "refused" / "random-u2netp-32-trt-fp16.onnx.json").read_text())
    assert record["notes"][-1].startswith("refused: ") and record["fidelity"]["mae"] > 1e-7


def command_start() -> re.Pattern[str]:
    """The beginning of a shell command, up to the place where a value stands."""
    tools = [*(f"u2export {words}" for words in commands()), "trtexec", "ssh", "ssh-copy-id", "pip install", "cd"]
    return re.compile(rf"\b(?:{'|'.join(tools)})(?: -[-\w]+=?)* ?$")


def unquoted_values(text: str) -> list[str]:
    """The values in commands inside f-strings of Python source that shlex does not quote."""
    found, start = [], command_start()
    for node in ast.walk(ast.parse(text)):
        before = ""
        for part in node.values if isinstance(node, ast.JoinedStr) else ():
            if isinstance(part, ast.Constant):
                before += str(part.value)
                continue
            assert isinstance(part, ast.FormattedValue)
            value = ast.unparse(part.value)
            if start.search(before) and "shlex." not in value:
                found.append(value)
            before += "x"
    return found


def test_commands_in_messages_quote_what_they_hold() -> None:
    """A name of a file with a space stays one word where a command is shown; values quoted before are listed here."""
    assert unquoted_values("f'run u2export trt build {path}'") == ["path"]
    assert not unquoted_values("f'run u2export trt build {shlex.quote(path)}'")
    quoted_before = {"onnx", "host", "port", "' '.join(files)", "name", "number"}
    for room in ("src", "reference", "calibration", "exporters", "benchmarks"):
        for path in (ROOT / room).rglob("*.py"):
            left = set(unquoted_values(path.read_text(encoding="utf-8"))) - quoted_before
            assert not left, f"{path}: {left}"


def test_hints_name_files_with_blanks_as_one_word(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    """Weights and folders such as "my photos": every command that a message shows can be pasted."""
    folder = tmp_path / "my photos"
    weights = cli("weights", "convert", "random-u2netp", "--to", folder / "my net.pth").stdout.splitlines()[0]
    done = cli("onnx", "--weights", weights, "--size", "32", "--budget", ANY, "--out", folder)
    assert done.returncode == 0, done.stderr
    artifact = done.stdout.splitlines()[0]
    assert Path(artifact).parent == folder and " " not in Path(artifact).name
    (shown,) = re.findall("next: (.*)", done.stderr)
    assert shlex.split(shown) == ["u2export", "bench", artifact, "--images", "FOLDER"]
    for command in replace(Recipe.read(recipe)[0], onnx="my net.onnx").commands().values():
        words = shlex.split(command)
        assert words[1] == "--onnx=my net.onnx" and all(word.startswith("--") for word in words[1:])


def test_names_of_layers_are_never_cut(cli: Cli, recipe: Path) -> None:
    model = recipe.with_name(recipe.name.replace(".recipe.json", ".onnx"))
    narrow = {"COLUMNS": "40"}
    shown = cli("inspect", model, "--layers", env=narrow).stdout
    layers = json.loads(cli("inspect", model, "--json").stdout)["layers"]
    assert len(layers) == 119 and all(any(line.startswith(f"{layer['name']} ") for line in shown.splitlines())
                                      for layer in layers)  # fmt: skip
    weak = cli("lint", "random-u2netp", "--top", "119", env=narrow).stdout
    assert "stage2d.rebnconv4.conv_s1 " in weak and "…" not in weak and len(weak.splitlines()) >= 121
