from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from u2export.errors import UserError
from u2export.reference import weights

torch = pytest.importorskip("torch")

from u2export.reference.checkpoint import FIRST, read_checkpoint  # noqa: E402

State = Mapping[str, Any]


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return dict(weights.load("random-u2netp")[1].state_dict())


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "net.", "_orig_mod.", "module._orig_mod.", "a.b.c.d.", "étage."]
)
def test_any_prefix(tmp_path: Path, state: State, prefix: str) -> None:
    torch.save({f"{prefix}{name}": t for name, t in state.items()}, tmp_path / "w.pth")
    assert same(read_checkpoint(tmp_path / "w.pth"), state)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin", ".pth.tar", ""])
@pytest.mark.parametrize("keys", [("state_dict",), ("weights_of_the_network",), ("checkpoint", "model_state", "net")])
def test_containers_under_any_key(tmp_path: Path, state: State, suffix: str, keys: tuple[str, ...]) -> None:
    data: Any = state
    for key in reversed(keys):
        data = {"epoch": 3, "loss": np.float64(0.25), "seen": np.int64(7), key: data, "optimizer": {"state": {0: 1}}}
    torch.save(data, tmp_path / f"w{suffix}")
    assert same(read_checkpoint(tmp_path / f"w{suffix}"), state)


def test_extra_tensors_are_named_and_ignored(tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture) -> None:
    more = {"total_ops": torch.zeros(1), "stage1.total_params": torch.zeros(1), "loss.weight": torch.ones(2), 5: "x"}
    torch.save({**state, **more}, tmp_path / "w.pth")
    with caplog.at_level(logging.WARNING, "u2export"):
        assert same(read_checkpoint(tmp_path / "w.pth"), state)
    assert "4 entries are not U²-Net's" in caplog.text and "loss.weight" in caplog.text


def test_missing_batch_counters_are_added(tmp_path: Path, state: State) -> None:
    torch.save({n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}, tmp_path / "w.pth")
    read = read_checkpoint(tmp_path / "w.pth")
    assert read.keys() == state.keys()
    weights.build(read)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_other_floats(tmp_path: Path, state: State, kind: str) -> None:
    dtype = getattr(torch, kind)
    torch.save({n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}, tmp_path / "w.pth")
    read = read_checkpoint(tmp_path / "w.pth")
    assert read[FIRST].dtype == torch.float32 and torch.equal(read[FIRST], state[FIRST].to(dtype).float())


def test_two_networks_in_one_file_are_refused(tmp_path: Path, state: State) -> None:
    torch.save({"model": state, "ema": state}, tmp_path / "two.pth")
    with pytest.raises(UserError, match=r"several U²-Nets \(model, ema\)"):
        read_checkpoint(tmp_path / "two.pth")
    both = {f"{who}.{n}": t for who in ("student", "teacher") for n, t in state.items()}
    torch.save(both, tmp_path / "pair.pth")
    with pytest.raises(UserError, match=r"several U²-Nets \(student, teacher\)"):
        read_checkpoint(tmp_path / "pair.pth")


Maker = Callable[[Path, dict[str, Any]], None]


def meta(path: Path, state: dict[str, Any]) -> None:
    torch.save({**state, FIRST: state[FIRST].to("meta")}, path)


def sparse(path: Path, state: dict[str, Any]) -> None:
    torch.save({**state, FIRST: state[FIRST].to_sparse()}, path)


def quantised(path: Path, state: dict[str, Any]) -> None:
    torch.save({**state, FIRST: torch.quantize_per_tensor(state[FIRST], 0.1, 0, torch.qint8)}, path)


def infinite(path: Path, state: dict[str, Any]) -> None:
    torch.save({**state, FIRST: torch.full_like(state[FIRST], float("inf"))}, path)


def text(path: Path, state: dict[str, Any]) -> None:
    torch.save({**state, FIRST: "a text"}, path)


def script(path: Path, state: dict[str, Any]) -> None:
    torch.jit.script(torch.nn.Conv2d(1, 1, 1)).save(str(path))


def page(path: Path, state: dict[str, Any]) -> None:
    path.write_text("\n <!DOCTYPE html><html><title>Google Drive - Virus scan warning</title></html>")


def pointer(path: Path, state: dict[str, Any]) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n")


def module(path: Path, state: dict[str, Any]) -> None:
    code = "import torch,sys; class_=type('U2NET',(torch.nn.Module,),{'__module__':'model'})\n"
    code += "import types; m=types.ModuleType('model'); m.U2NET=class_; sys.modules['model']=m\n"
    subprocess.run([sys.executable, "-c", f"{code}torch.save(class_(), {str(path)!r})"], check=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "says", "hint"),
    [
        (meta, "has no values", "save the weights in fp32"),
        (sparse, "not a plain dense tensor", "save the weights in fp32"),
        (quantised, "not a plain dense tensor", "save the weights in fp32"),
        (infinite, "NaN or infinite", "damaged"),
        (text, "is str, not a tensor", "model.state_dict()"),
        (script, "a TorchScript file", "torch.jit.load("),
        (page, "a web page", "download the file itself"),
        (pointer, "a pointer of Git LFS", "git lfs pull"),
        (module, "a pickled model.U2NET", "weights_only=False"),
    ],
)
def test_what_is_no_checkpoint_says_what_it_is(
    tmp_path: Path, state: dict[str, Any], make: Maker, says: str, hint: str
) -> None:
    make(tmp_path / "w.pth", state)
    with pytest.raises(UserError, match=r"w\.pth") as caught:
        read_checkpoint(tmp_path / "w.pth")
    assert says in caught.value.problem and hint in caught.value.hint
    assert "\x1b" not in caught.value.problem + caught.value.hint and "\n" not in caught.value.problem


@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_checkpoints_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "w.pth"
    torch.save({FIRST: torch.zeros(2, 2), "other": np.float64(1)}, path)
    data = bytearray(path.read_bytes())
    for where, value in changes:
        data[int(where * len(data))] = value
    path.write_bytes(bytes(data))
    try:
        read_checkpoint(path)
    except UserError as error:
        assert "\n" not in error.problem and "\x1b" not in error.problem
