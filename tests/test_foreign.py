"""ONNX files that others exported: fed as they want to be, read where d0 is, or refused in two lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import SMALL, picture, untrained
from conftest import Cli, two_lines
from PIL import Image

import u2export as u2
from u2export.errors import UserError
from u2export.exporters.layout import as_maps, read_layout
from u2export.exporters.onnx_outline import read_outline
from u2export.exporters.open import read_artifact
from u2export.reference import weights
from u2export.reference.image import Floats, Pixels, mask_for
from u2export.reference.onnx_session import open_session, write_ort_format

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.filterwarnings("ignore")
NETWORK = untrained()


class Shaped(torch.nn.Module):
    """The network with a function before it and one after it."""

    def __init__(self, before: Callable[[Any], Any], after: Callable[[Any], Any]) -> None:
        super().__init__()
        self.network, self.before, self.after = NETWORK, before, after

    def forward(self, x: Any) -> Any:
        return self.after(self.network(self.before(x)))


def export(path: Path, after: Callable[[Any], Any], x: Any = None, before: Any = lambda x: x, **options: Any) -> Path:
    x = torch.zeros(1, 3, 64, 64) if x is None else x
    options = {"dynamo": False, "opset_version": 17, "input_names": ["x"], **options}
    torch.onnx.export(Shaped(before, after).eval(), (x,), str(path), **options)
    return path


def d0(maps: Any) -> Any:
    return maps[0]


def half(path: Path) -> Path:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(export(path, d0)), keep_io_types=False), path)
    return path


def double(path: Path) -> Path:
    """Only the input: ONNX Runtime has no convolutions of float64."""
    return export(path, d0, torch.zeros(1, 3, 64, 64).double(), lambda x: x.float())


def batch_of_four(path: Path) -> Path:
    return export(path, d0, torch.zeros(4, 3, 64, 64))


def without_channels(path: Path) -> Path:
    return export(path, lambda maps: maps[0].squeeze(1))


def without_batch(path: Path) -> Path:
    return export(path, lambda maps: maps[0][0, 0])


def channels_last(path: Path) -> Path:
    x = torch.zeros(1, 64, 64, 3)
    return export(path, lambda maps: maps[0].permute(0, 2, 3, 1), x, lambda x: x.permute(0, 3, 1, 2))


def dynamic(path: Path) -> Path:
    """Any batch and channels last, with d0 for all."""
    axes = {"x": {0: "n"}, "y": {0: "n"}}
    x = torch.zeros(2, 64, 64, 3)
    return export(path, d0, x, lambda x: x.permute(0, 3, 1, 2), output_names=["y"], dynamic_axes=axes)


def batch_of_three_without_channels(path: Path) -> Path:
    """As many pictures as channels, so that shapes alone would mislead."""
    return export(path, lambda maps: maps[0].squeeze(1), torch.zeros(3, 3, 64, 64))


# What the notes must say of each file.
ODD: dict[Callable[[Path], Path], str] = {
    half: "cast to float16",
    double: "cast to float64",
    batch_of_four: "fixed batch of 4",
    without_channels: "no axis for channels",
    without_batch: "no axis for channels",
    channels_last: "channels last",
    dynamic: "channels last",
    batch_of_three_without_channels: "fixed batch of 3",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    weights.save(NETWORK, folder / "net.pth")
    return folder / "net.pth"


@pytest.fixture(scope="module")
def photos(folder: Path) -> list[Path]:
    paths = [folder / "photos" / f"{name}.png" for name in "ab"]
    paths[0].parent.mkdir()
    for seed, path in enumerate(paths):
        Image.fromarray(picture(seed)).save(path)
    return paths


def expected(photo: Path) -> Pixels:
    """PyTorch's mask."""
    with torch.inference_mode():
        fused = NETWORK(torch.from_numpy(SMALL.tensor(np.asarray(Image.open(photo)))))[0].numpy()
    return mask_for(fused[0, 0], 120, 160)


def off(mask: Pixels, photo: Path) -> float:
    """The largest difference from PyTorch's mask, in levels of 255."""
    return float(np.abs(mask.astype(int) - expected(photo).astype(int)).max())


def test_the_masks_differ_between_the_photos(photos: list[Path]) -> None:
    assert off(expected(photos[0]), photos[1]) > 50 and expected(photos[0]).std() > 20


@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
def test_odd_inputs_and_outputs_give_the_right_mask(
    make: Callable[[Path], Path], folder: Path, photos: list[Path], tmp_path: Path
) -> None:
    path = make(folder / f"{make.__name__}.onnx")
    artifact = read_artifact(path)
    assert artifact.contract == SMALL and any(ODD[make] in note for note in artifact.notes), artifact.notes
    assert artifact.precision == ("fp16" if make is half else "fp32")
    written = u2.write_masks(path, photos, tmp_path)
    assert written.notes == artifact.notes
    for photo in photos:
        assert off(np.asarray(Image.open(written.files[photo])), photo) <= (6 if make is half else 1)


def test_bench_compares_all_of_them_with_pytorch(folder: Path, photos: list[Path], trained: Path) -> None:
    makers = (half, batch_of_four, channels_last)
    files = [make(folder / f"{make.__name__}.onnx") for make in makers]
    report = u2.bench(files, photos[0].parent, reference=str(trained), samples=2, seconds=0, rounds=1)
    for path, make in zip(files, makers, strict=True):
        row = report.row(path.name)
        assert row and not row.reason, row and row.problem
        assert "pytorch" in row.reference
        assert row.fidelity and row.fidelity.mae < (0.01 if make is half else 1e-4)
        assert any(ODD[make] in note for note in row.notes)
        assert len(row.latency.rounds[0]) >= 2


def test_batches_up_to_the_fixed_one(folder: Path, photos: list[Path]) -> None:
    path = batch_of_four(folder / "batch_of_four.onnx")
    with u2.open_artifact(path) as runner:
        alone = [runner(runner.input(photo)) for photo in photos]
        both = runner(np.concatenate([runner.input(photo) for photo in photos]))
        assert both.shape == (2, 1, 64, 64)
        assert np.abs(both - np.concatenate(alone)).max() < 1e-6 and np.abs(both[0] - both[1]).max() > 0.01
        with pytest.raises(UserError, match="takes 4 pictures at once, not 5"):
            runner(np.repeat(runner.input(photos[0]), 5, axis=0))


# --- refusals ----------------------------------------------------------------------------------------------------


def graph(
    path: Path, kind: str = "FLOAT", shape: tuple[Any, ...] = (1, 3, 64, 64), out: Any = None, more: int = 0
) -> Path:
    """A graph that hands its first input on."""
    helper = onnx.helper
    number = getattr(onnx.TensorProto, kind)
    inputs = [helper.make_tensor_value_info(f"x{i}", number, shape) for i in range(more + 1)]
    nodes = [helper.make_node("Identity", ["x0"], ["y"])]
    output = helper.make_tensor_value_info("y", number, shape)
    made = helper.make_graph(nodes, "g", inputs, [output])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kind": "UINT8", "shape": (1, 64, 64, 3)}, "takes uint8, and nothing tells how it scales pixels"),
        ({"kind": "INT8"}, "has the type tensor(int8)"),
        ({"more": 1}, "2 inputs (x0, x1)"),
        ({"shape": (3, 64, 64)}, "not (N, C, H, W)"),
        ({"shape": (1, 64, 64, 64)}, "does not tell which axis holds the channels"),
        ({"shape": (1, 3, 64, 3)}, "does not tell which axis holds the channels"),
        ({"shape": (2**48, 3, 64, 64)}, "takes 281474976710656 pictures at once"),  # a flipped bit, of the fuzz session
        ({"shape": ("n", "a", "b", 3)}, ""),
    ],
)
def test_inputs_that_are_no_pictures(given: dict[str, Any], says: str, cli: Cli, photo: Path, tmp_path: Path) -> None:
    path = graph(tmp_path / "g.onnx", **given)
    if not says:
        assert read_layout(path, open_session(path)).channels_last
        return
    two_lines(cli("predict", photo, "--model", path, "--out", tmp_path / "out"), says)
    assert not (tmp_path / "out").exists()


def test_a_map_of_another_size(photo: Path, tmp_path: Path, cli: Cli) -> None:
    path = export(tmp_path / "small.onnx", lambda maps: torch.nn.functional.avg_pool2d(maps[0], 2))
    two_lines(
        cli("predict", photo, "--model", path, "--out", tmp_path / "out"), "no output is a map of the input's size"
    )


@pytest.mark.parametrize("shape", [(2, 32, 32), (7, 64), (1, 1, 64, 32), (64, 64, 1), (1, 1, 1, 64, 64)])
def test_shapes_that_are_no_map(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="has shape"):
        as_maps(np.zeros(shape, np.float32), (64, 64), "a.onnx: output y")


def test_seven_maps_in_place_of_a_batch_are_no_map() -> None:
    values: Floats = np.zeros((7, 64, 64), np.float32)
    with pytest.raises(UserError, match="has shape"):
        as_maps(values, (64, 64), "y", 1)


# --- which output is d0 -------------------------------------------------------------------------------------------


def masks_of(path: Path, photos: list[Path], folder: Path, **options: Any) -> tuple[list[Pixels], str]:
    """The masks, and all notes in one text."""
    written = u2.write_masks(path, photos, folder, **options)
    return [np.asarray(Image.open(written.files[photo])) for photo in photos], "; ".join(written.notes)


def without_sigmoid(path: Path, keep: bool = False) -> Path:
    """A file that gives d0 before its sigmoid; with `keep`, beside d0."""
    model = onnx.load(export(path, d0, output_names=["y"]))
    node = next(n for n in model.graph.node if n.output[0] == "y")
    assert node.op_type == "Sigmoid"
    logits = onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, (1, 1, 64, 64))
    model.graph.output.insert(0, logits)
    if not keep:
        model.graph.node.remove(node)
        del model.graph.output[1]
    onnx.save(model, path)
    return path


def hidden(y: Any) -> Any:
    """The same values behind operators that hide where they come from."""
    return torch.sqrt(y * y)


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (lambda maps: tuple(reversed(maps)), "(7 of 7), the map that the graph fuses"),
        (lambda maps: (maps[3], maps[0].squeeze(1), maps[1]), "(2 of 3), the map that the graph fuses"),
        (lambda maps: (torch.nn.functional.avg_pool2d(maps[1], 2), maps[0]), "(2 of 2), the only map"),
    ],
)
def test_d0_is_found_wherever_it_stands(after: Any, says: str, photos: list[Path], tmp_path: Path) -> None:
    masks, notes = masks_of(export(tmp_path / "net.onnx", after), photos, tmp_path / "masks")
    assert says in notes and all(off(mask, photo) <= 1 for mask, photo in zip(masks, photos, strict=True))


def test_logits_get_their_sigmoid(photos: list[Path], tmp_path: Path) -> None:
    masks, notes = masks_of(without_sigmoid(tmp_path / "net.onnx"), photos, tmp_path / "masks")
    assert "holds logits: u2export applies the sigmoid" in notes
    assert all(off(mask, photo) <= 1 for mask, photo in zip(masks, photos, strict=True))
    # A stretch of the logits themselves would be another mask.
    with torch.inference_mode():
        raw = torch.logit(NETWORK(torch.from_numpy(SMALL.tensor(picture(0))))[0].double()).float().numpy()
    assert off(mask_for(raw[0, 0], 120, 160), photos[0]) > 5


def test_logits_behind_unknown_operators_are_told_by_their_values(photos: list[Path], tmp_path: Path) -> None:
    path = export(tmp_path / "net.onnx", lambda maps: torch.logit(maps[0], 1e-6))
    masks, notes = masks_of(path, photos, tmp_path / "masks")
    assert "holds logits" in notes
    assert all(off(mask, photo) <= 1 for mask, photo in zip(masks, photos, strict=True))


def test_d0_and_its_logits_in_one_file(photos: list[Path], tmp_path: Path) -> None:
    masks, notes = masks_of(without_sigmoid(tmp_path / "net.onnx", keep=True), photos, tmp_path / "masks")
    assert "d0 is output y (2 of 2)" in notes and "logits" not in notes
    assert off(masks[0], photos[0]) <= 1


def test_values_that_are_neither_maps_nor_logits(photos: list[Path], tmp_path: Path) -> None:
    path = export(tmp_path / "net.onnx", lambda maps: hidden(maps[0] * 255))
    with pytest.raises(UserError, match="neither a map"):
        u2.predict(path, photos)


def test_names_decide_where_the_graph_does_not_tell(photos: list[Path], tmp_path: Path) -> None:
    path = export(tmp_path / "net.onnx", lambda m: (hidden(m[2]), hidden(m[0])), output_names=["side", "D0"])
    masks, notes = masks_of(path, photos, tmp_path / "masks")
    assert "d0 is output D0 (2 of 2), by its name alone" in notes and off(masks[0], photos[0]) <= 1


def test_outputs_that_cannot_be_told_apart_are_named(photos: list[Path], tmp_path: Path, cli: Cli) -> None:
    path = export(tmp_path / "net.onnx", lambda m: (hidden(m[2]), hidden(m[0])), output_names=["one", "two"])
    words = ("predict", photos[0], "--model", path, "--out", tmp_path / "masks")
    refused = cli(*words)
    two_lines(refused, "2 outputs may be the fused map d0, and nothing tells which: one, two")
    assert "--output-name" in refused.stderr
    two_lines(cli(*words, "--output-name", "three"), "no output is named 'three'")
    done = cli(*words, "--output-name", "two")
    assert not done.returncode and "note: d0 is output two (2 of 2), as you named it" in done.stderr
    assert off(np.asarray(Image.open(done.stdout.strip())), photos[0]) <= 1
    side, _ = masks_of(path, photos, tmp_path / "side", output_name="one")
    assert off(side[0], photos[0]) > 5


def test_bench_takes_the_named_output(photos: list[Path], tmp_path: Path, trained: Path) -> None:
    path = export(tmp_path / "net.onnx", lambda m: (hidden(m[2]), hidden(m[0])), output_names=["one", "two"])
    with pytest.raises(UserError) as caught:
        u2.bench([path], photos[0], reference=str(trained), latency=False)
    assert caught.value.option == "output_name"
    found = {}
    for name in ("one", "two"):
        row = u2.bench([path], photos[0], reference=str(trained), output_name=name, latency=False).row(path.name)
        assert row and row.fidelity and any(f"d0 is output {name}" in note for note in row.notes)
        found[name] = row
    assert found["two"].fidelity.mae < 1e-4 < found["one"].fidelity.mae
    assert found["one"].digest != found["two"].digest


def test_records_tell_their_output(tmp_path: Path, photos: list[Path], trained: Path) -> None:
    made = u2.export("onnx", weights=trained, size=64, resize="lanczos", out=tmp_path)
    for call in (u2.predict, lambda *given, **more: u2.bench([given[0]], given[1][0], **more)):
        with pytest.raises(UserError, match="record") as caught:
            call(made, photos, output_name="mask")
        assert caught.value.option == "output_name"
    made.record.unlink()
    alone = read_artifact(made.path)
    assert alone.contract == made.contract and "image contract read from the file" in alone.notes[0]


def test_the_format_of_onnx_runtime_tells_its_size(tmp_path: Path, photos: list[Path]) -> None:
    model = onnx.load(export(tmp_path / "net.onnx", d0))
    write_ort_format(model, tmp_path / "net.ort")
    artifact = read_artifact(tmp_path / "net.ort")
    assert artifact.exporter == "ort" and artifact.contract == SMALL
    assert off(u2.predict(artifact, photos)[photos[0]], photos[0]) <= 1


def test_a_circle_in_a_damaged_graph_ends(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("Identity", ["y"], ["z"]), onnx.helper.make_node("Sigmoid", ["z"], ["y"])]
    outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, 1, 8, 8))]
    inputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, 1, 8, 8))]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", inputs, outputs)), tmp_path / "g.onnx")
    outline = read_outline(tmp_path / "g.onnx")
    assert outline and not outline.is_fused("y")
    (tmp_path / "g.onnx").write_bytes(b"\xff" * 50)
    assert read_outline(tmp_path / "g.onnx") is None
