"""Networks with several maps, one for each class: a class that is lost must be seen although map 0 is as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from conftest import ROOT, Cli, two_lines
from PIL import Image

import u2export as u2
from u2export.api.exporting import read_contract
from u2export.benchmarks.gate.baseline import Baseline, updated
from u2export.benchmarks.gate.judging import judge
from u2export.benchmarks.gate.policy import Policy
from u2export.benchmarks.gate.saved_masks import SavedMasks
from u2export.benchmarks.measuring.bench import measure
from u2export.benchmarks.measuring.judging import NO_TRUTH, Judged
from u2export.benchmarks.measuring.plan import Plan
from u2export.benchmarks.report import Report, Row, Settings
from u2export.benchmarks.tables.columns import table_of
from u2export.benchmarks.tables.contact_sheet import MORE, draw
from u2export.benchmarks.tables.csv_table import comma_separated
from u2export.errors import UserError
from u2export.exporters.open import read_artifact
from u2export.reference import weights
from u2export.reference.classes import class_map, classes_for, palette, probabilities
from u2export.reference.fidelity import Fidelity, ImageFidelity, compare
from u2export.reference.image import CONTRACTS, Contract, Floats, sigmoid

pytest.importorskip("onnxruntime")
QUICK = Settings("custom", samples=5, seconds=0.0, rounds=5)


def stripes(*shares: float, size: int = 100) -> Floats:
    """Maps (K, size, size) in which each class wins on a stripe with this share of the rows."""
    maps = np.full((len(shares), size, size), 0.1, np.float32)
    edges = np.rint(np.cumsum([0, *shares]) * size).astype(int)
    for k in range(len(shares)):
        maps[k, edges[k] : edges[k + 1]] = 0.9
    return maps


def damaged(maps: Floats, lost: int) -> Floats:
    changed = maps.copy()
    changed[lost] = 0
    return changed


# Two sets of maps


def test_the_same_classes_are_the_same() -> None:
    same = compare(stripes(0.5, 0.3, 0.2), stripes(0.5, 0.3, 0.2))
    assert (same.mae, same.max_abs, same.iou, same.boundary_f, same.area, same.raw_mae) == (0, 0, 1, 1, 1, 0)
    assert same.class_intersection == same.class_union == (5000, 3000, 2000) and same.finite and not same.empty
    assert Fidelity((same,)).class_ious == {0: 1.0, 1: 1.0, 2: 1.0} and Fidelity((same,)).class_agreement == 1


def test_a_lost_class_is_seen_although_map_0_is_intact() -> None:
    want = stripes(0.6, 0.2, 0.1, 0.1)
    lost = compare(damaged(want, 2), want)
    assert compare(damaged(want, 2)[0], want[0]).mae == 0  # what a comparison of map 0 alone says
    found = Fidelity((lost,))
    assert found.class_ious[2] == found.class_iou_worst == lost.iou == 0 and lost.class_intersection[2] == 0
    # Where class 2 was, all maps left are equal: the first one wins, and gets 1000 pixels too many.
    assert found.class_ious == {0: 6000 / 7000, 1: 1.0, 2: 0.0, 3: 1.0}
    assert found.class_agreement == pytest.approx(0.9) and lost.mae == pytest.approx((0.9 * 10 + 0.1 * 90) / 100)
    assert found.broken({"class_iou_worst": 0.9}) == "class_iou_worst (class 2) 0 < 0.9"
    assert set(found.summary()) >= {"class_iou", "class_iou_worst", "class_agreement"}
    assert found.to_json()["class_ious"]["2"] == 0


def test_absent_classes_and_stray_pixels_do_not_count_and_small_ones_do() -> None:
    want = stripes(0.7, 0.3, 0, 0)
    stray = want.copy()
    stray[2, 0, 0] = 0.95  # one pixel of 10,000
    assert 2 not in Fidelity((compare(stray, want),)).class_ious
    stray[2, 0, :10] = 0.95
    assert Fidelity((compare(stray, want),)).class_iou_worst == 0
    # IoU of classes is over the pixels of all photos: 1000 right ones on one photo, 10 wrong ones on another.
    both = Fidelity((compare(stray, want), compare(stripes(0.6, 0.3, 0.1, 0), stripes(0.6, 0.3, 0.1, 0))))
    assert both.class_ious[2] == 1000 / 1010


def test_maps_of_one_class_alone_are_empty_and_nan_is_not_finite() -> None:
    want = stripes(1.0, 0, 0)
    assert compare(want, want).empty and not compare(stripes(0.9, 0.1, 0), stripes(0.9, 0.1, 0)).empty
    broken = compare(want * np.float32(np.nan), want)
    assert not broken.finite and "NaN" in Fidelity((broken,)).broken({})


def test_logits_are_known_by_their_values() -> None:
    logits = np.linspace(-90, 90, 400, dtype=np.float32).reshape(4, 10, 10)
    with np.errstate(over="raise"):
        assert np.allclose(sigmoid(logits), 1 / (1 + np.exp(-logits.astype(np.float64))), atol=1e-7)
    maps = sigmoid(logits / 30)
    assert probabilities(maps) is maps and np.array_equal(probabilities(logits), sigmoid(logits))
    assert probabilities(maps * np.float32(1.00001)).max() > 0.9  # rounding makes no logits
    same = compare(np.log(maps / (1 - maps)), maps)
    assert same.mae < 1e-6 and Fidelity((same,)).class_agreement == 1


def test_other_numbers_and_sizes_of_maps_are_refused() -> None:
    with pytest.raises(UserError, match="gives 1 map, the reference gives 3 maps"):
        compare(stripes(1.0)[0], stripes(0.5, 0.3, 0.2))
    with pytest.raises(UserError, match="its maps are 50x50, those of the reference are 100x100"):
        compare(stripes(0.5, 0.5, size=50), stripes(0.5, 0.5))


def test_the_palette_is_that_of_pascal_voc() -> None:
    assert palette(6).tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
    assert palette(22)[21].tolist() == [128, 64, 128] and len(np.unique(palette(256), axis=0)) == 256
    assert class_map(stripes(0.5, 0.3, 0.2))[[0, 60, 90], 0].tolist() == [0, 1, 2]


# Exports


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    path: Path = tmp_path_factory.mktemp("four") / "four.pth"
    torch.save(builders.four_classes().state_dict(), path)
    return path


def without_class_2(*args: Any) -> Any:
    """As `to_onnx`, but class 2 wins nowhere; all other maps stay as they are."""
    import onnx

    from u2export.reference.onnx_export import to_onnx

    model = to_onnx(*args)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("outconv."):
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[2] = -9 if values.ndim == 1 else 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return model


def test_an_export_that_loses_a_class_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from u2export.exporters.exporter import Request
    from u2export.exporters.ort import Ort
    from u2export.reference.source import Source

    source = Source.open(str(checkpoint), builders.SMALL)
    good = Ort().export(source, tmp_path, Request("fp32"))
    assert set(good.fidelity["class_ious"]) == {"0", "1", "2", "3"} and good.fidelity["class_iou_worst"] > 0.99

    monkeypatch.setattr("u2export.exporters.ort.to_onnx", without_class_2)
    loose = {"mae": 1.0, "mae_worst": 1.0}  # so that the classes alone decide
    with pytest.raises(UserError, match=r"class_iou_worst \(class 2\) 0 < 0\.99"):
        Ort().export(source, tmp_path / "bad", Request("fp32", budget=loose))
    assert [p.name for p in (tmp_path / "bad").iterdir()] == ["refused"]
    passed = Ort().export(source, tmp_path / "bad", Request("fp32", budget={**loose, "class_iou_worst": 0.0}))
    assert passed.fidelity["class_ious"]["2"] == 0


@pytest.mark.slow
def test_int8_keeps_trained_classes_and_is_refused_without_one(
    u2netp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from u2export.calibration.dataset import Calibration
    from u2export.exporters.exporter import Request
    from u2export.exporters.ort import Ort
    from u2export.reference.source import Source

    torch.save(builders.bands(Source.open(str(u2netp)).model).state_dict(), tmp_path / "bands.pth")
    source = Source.open(str(tmp_path / "bands.pth"), Contract(96, 96))
    photos = Calibration.open(ROOT / "calibration", source.contract, limit=12)
    # The bands have no gap between them, so their borders move more than those of objects: IoU is .80 to .98.
    budget = {"mae": 0.02, "mae_worst": 0.03, "class_iou_worst": 0.7}
    made = Ort().export(source, tmp_path, Request("int8", photos, budget=budget))
    assert set(made.fidelity["class_ious"]) == {"0", "1", "2", "3"} and made.fidelity["class_agreement"] > 0.93
    monkeypatch.setattr("u2export.exporters.ort.to_onnx", without_class_2)
    loose = {**budget, "mae": 1.0, "mae_worst": 1.0}
    with pytest.raises(UserError, match=r"class_iou_worst \(class 2\)"):
        Ort().export(source, tmp_path / "bad", Request("int8", photos, budget=loose, max_float=0.0))


# Bench, tables, gate


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Report, Path]]:
    """Measures files of `builders.classes_file` against the first of them."""
    folder = tmp_path_factory.mktemp("bench")
    photos = builders.noise_pictures(folder / "photos", (f"p{i}.png" for i in range(2)))

    def run(files: dict[str, dict[str, Any]], **changes: Any) -> tuple[Report, Path]:
        paths = [builders.classes_file(folder / name, **words) for name, words in files.items()]
        plan = Plan([read_artifact(path) for path in paths], {p.name: p for p in sorted(photos.iterdir())},
                    settings=QUICK, reference=str(paths[0]), latency=False)  # fmt: skip
        return measure(replace(plan, **changes)), folder

    return run


def named(report: Report, name: str) -> Row:
    found = report.row(name)
    assert found is not None, [r.name for r in report.rows]
    return found


def test_rows_compare_all_classes(bench: Callable[..., tuple[Report, Path]], tmp_path: Path) -> None:
    files: dict[str, dict[str, Any]] = {"good.onnx": {}, "lost.onnx": {"lost": 2}, "logits.onnx": {"logits": True},
                                        "one.onnx": {"classes": 1}}  # fmt: skip
    report, _ = bench(files)
    lost, logits, one = (named(report, f"{name}.onnx") for name in ("lost", "logits", "one"))
    assert lost.fidelity and lost.fidelity.class_ious[2] == 0 and lost.fidelity.mae > 0.1
    assert logits.fidelity and logits.fidelity.class_agreement == 1 and logits.fidelity.mae < 1e-6
    assert one.reason == "refused" and "gives 1 map, the reference gives 4 maps" in one.problem and not one.images
    shown = dict(zip((r.name for r in report.rows), table_of(report).by_title()["class IoU worst"], strict=True))
    assert shown["good.onnx"] == "ref" and shown["lost.onnx"] == "0.0000" and shown["logits.onnx"] == "1.0000"
    assert "class_iou_worst" in comma_separated([report]).splitlines()[0]
    report.save(tmp_path / "r.json")
    assert Report.load(tmp_path / "r.json").rows == report.rows
    # Among one-map networks there are no classes to tell of.
    assert "class IoU worst" not in table_of(builders.mixed_report()).by_title()


def test_reference_maps_of_several_classes_travel(bench: Callable[..., tuple[Report, Path]], tmp_path: Path) -> None:
    maps = tmp_path / "maps.npz"
    bench({"good.onnx": {}}, save_reference=maps)
    with np.load(maps) as found:
        assert {found[name].shape for name in found.files if name != "about"} == {(4, 32, 48)}
    report, _ = bench({"good.onnx": {}, "lost.onnx": {"lost": 2}}, reference=str(maps))
    lost = named(report, "lost.onnx")
    assert lost.reference == "maps.npz" and lost.fidelity and lost.fidelity.class_ious[2] == 0


def test_ground_truth_is_of_one_map(bench: Callable[..., tuple[Report, Path]], tmp_path: Path) -> None:
    report, folder = bench({"good.onnx": {}})
    truth = builders.noise_pictures(tmp_path / "truth", ["p0.png", "p1.png"])
    masks = {folder / "photos" / p.name: p for p in truth.iterdir()}
    row = named(bench({"good.onnx": {}}, masks=masks)[0], "good.onnx")
    assert not row.accuracy and NO_TRUTH in row.notes and NO_TRUTH not in named(report, "good.onnx").notes


def test_the_gate_fails_a_lost_class(bench: Callable[..., tuple[Report, Path]], tmp_path: Path) -> None:
    report, _ = bench({"ref.onnx": {}, "model.onnx": {}})
    row = named(report, "model.onnx")
    accepted = updated(replace(report, rows=(row,), complete=True), None, True, "")
    accepted.save(tmp_path / "base.json")
    base = Baseline.load(tmp_path / "base.json")
    assert base.artifacts["model.onnx"].images == accepted.artifacts["model.onnx"].images
    assert judge(replace(report, rows=(row,)), base).outcome == "pass"
    bad, _ = bench({"ref.onnx": {}, "model.onnx": {"lost": 2}})
    # A file without a record is its own weights; an artifact keeps those that it was made from.
    lost = replace(named(bad, "model.onnx"), weights=row.weights)
    verdicts = judge(replace(bad, rows=(lost,)), base)
    found = {f.measure: f for j in verdicts.judgements for f in j.findings}
    assert verdicts.exit_code == 1 and found["class iou"].verdict == found["class agreement"].verdict == "fail"
    assert "class 2" in found["class iou"].text


def test_the_gates_limits_on_classes() -> None:
    then = {"p.png": ImageFidelity(0, 0, 1, 1, 1, 0, class_intersection=(900, 90), class_union=(910, 100))}
    now = {"p.png": replace(then["p.png"], class_intersection=(895, 85), class_union=(915, 105))}
    base = updated(builders.report(builders.row(images=then)), None, True, "")

    def verdict(images: dict[str, ImageFidelity], limits: dict[str, float]) -> dict[str, str]:
        policy = Policy.from_toml({"class": limits})
        judged = judge(builders.report(builders.row(images=images)), base, policy).judgements[0]
        return {f.measure: f.verdict for f in judged.findings if f.measure.startswith("class")}

    assert verdict(then, {}) == {"class iou": "pass", "class agreement": "pass"}
    # 90/100 becomes 85/105: a loss of .090. Of 1000 pixels 990 agreed, then 980.
    assert verdict(now, {"iou": 0.095, "agreement": 0.0101}) == {"class iou": "pass", "class agreement": "pass"}
    assert verdict(now, {"iou": 0.085, "agreement": 0.0099}) == {"class iou": "fail", "class agreement": "fail"}
    plain = {"p.png": replace(then["p.png"], class_intersection=(), class_union=())}
    assert verdict(plain, {}) == {"class iou": "inconclusive"}


def test_saved_masks_and_contact_sheets_hold_all_classes(photo: Path, tmp_path: Path) -> None:
    want = stripes(0.5, 0.3, 0.2)[None]
    row = builders.measured_row("a", reference="ref", images={"photo.png": compare(damaged(want[0], 2), want[0])})
    report = builders.report(row)
    judged = [Judged("ref", want, {"a": damaged(want[0], 2)[None]})]
    SavedMasks.of(report, judged).save(tmp_path / "m.npz")
    back = SavedMasks.load(tmp_path / "m.npz")
    assert back.rows["a"].shape == (1, 3, 100, 100) and np.abs(back.rows["a"] - damaged(want[0], 2)).max() < 1e-5
    draw(report, {"photo.png": photo}, judged, tmp_path / "s.png", 1)
    with Image.open(tmp_path / "s.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert (np.abs(pixels.astype(int) - np.int64(MORE)).max(-1) < 3).sum() > 1000
    assert (pixels == palette(3)[2]).all(-1).sum() > 1000


# predict


def colours_photo(path: Path) -> Path:
    """A photo of three fields, red, green and blue."""
    pixels = np.zeros((60, 90, 3), np.uint8)
    for channel in range(3):
        pixels[:, 30 * channel : 30 * (channel + 1), channel] = 255
    Image.fromarray(pixels).save(path)
    return path


def test_predict_writes_the_class_of_each_pixel(cli: Cli, tmp_path: Path) -> None:
    photo = colours_photo(tmp_path / "fields.png")
    model = builders.classes_file(tmp_path / "m.onnx")
    result = cli("predict", photo, "--model", model, "--out", tmp_path / "out", "--classes")
    assert result.returncode == 0, result.stderr
    names = ["fields.png", *(f"fields.class{k}.png" for k in range(4))]
    assert result.stdout.split() == [str(tmp_path / "out" / name) for name in names]
    with Image.open(tmp_path / "out" / "fields.png") as shown:
        assert (shown.mode, shown.size) == ("P", (90, 60))
        index = np.asarray(shown)
        colours = np.asarray(shown.convert("RGB"))
    fields = np.stack([index[10, 15], index[30, 45], index[50, 75]])
    assert fields.tolist() == [1, 2, 3] and set(np.unique(index)) <= {0, 1, 2, 3}
    assert (colours == palette(4)[index]).all()
    masks = [np.asarray(Image.open(tmp_path / "out" / name)) for name in names[1:]]
    # Of the normalised red field, class 1 gets three times 2.2, and green three times -2.0.
    assert masks[1][10, 15] > 250 and masks[1][50, 75] < 5 and masks[2][30, 45] > 250 and masks[0].shape == (60, 90)
    # What was written is no photo of the next run.
    again = cli("predict", tmp_path / "out", "--model", model, "--out", tmp_path / "again")
    assert again.returncode == 1 and "no" in again.stderr and not (tmp_path / "again").exists()
    one = colours_photo(tmp_path / "fields.class0.jpg")
    two_lines(cli("predict", photo, one, "--model", model, "--out", tmp_path / "c", "--classes"), "would both write")


def test_predict_refuses_what_needs_one_mask_or_several(cli: Cli, tmp_path: Path) -> None:
    photo = colours_photo(tmp_path / "fields.png")
    four = builders.classes_file(tmp_path / "four.onnx")
    one = builders.classes_file(tmp_path / "one.onnx", classes=1)
    two_lines(cli("predict", photo, "--model", four, "--out", tmp_path / "o", "--cutout"), "has 4 classes")
    two_lines(cli("predict", photo, "--model", one, "--out", tmp_path / "o", "--classes"), "has no classes")
    assert not list((tmp_path / "o").iterdir())


@pytest.mark.parametrize("logits", [False, True])
def test_python_gives_all_classes(tmp_path: Path, logits: bool) -> None:
    photo = colours_photo(tmp_path / "fields.png")
    with u2.open_artifact(builders.classes_file(tmp_path / "four.onnx", logits=logits)) as runner:
        index, masks = runner.mask(photo), runner.class_masks(photo)
        assert runner(runner.input(photo)).shape == (1, 4, 32, 48)
    assert index.shape == (60, 90) and masks.shape == (4, 60, 90) and masks.dtype == index.dtype == np.uint8
    decided = np.sort(masks, 0)[-1].astype(int) - np.sort(masks, 0)[-2] > 1
    assert (masks.argmax(0) == index)[decided].all() and decided.mean() > 0.9
    assert (u2.predict(tmp_path / "four.onnx", photo)[photo] == index).all()
    with u2.open_artifact(builders.classes_file(tmp_path / "one.onnx", classes=1)) as runner:
        assert (runner.class_masks(photo)[0] == runner.mask(photo)).all()


def test_borders_of_classes_are_those_of_resized_maps() -> None:
    left = np.array([[1, 0.75, 0.25, 0]], np.float32).repeat(4, 0)
    index = classes_for(np.stack([left, 1 - left]), 40, 400)
    assert (index[:, :200] == 0).all() and (index[:, 200:] == 1).all()  # not in steps of the 100 pixels of a cell
    with pytest.raises(UserError, match="300 classes"):
        classes_for(np.zeros((300, 2, 2), np.float32), 4, 4)


# The contract of the cloth segmentation


def test_published_weights_carry_their_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cloth = weights.contract_of("u2net_cloth_seg")
    assert (cloth.shape, cloth.mean, cloth.std) == ((1, 3, 768, 768), (0.5,) * 3, (0.5,) * 3)
    assert weights.contract_of("u2netp") == weights.contract_of("no such file") == Contract()
    # The published file is known by its hash, under any name.
    file = tmp_path / "renamed.onnx"
    file.write_bytes(b"the published file")
    assert weights.contract_of(str(file)) == Contract()
    md5 = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    known = replace(weights.WEIGHTS["u2net_cloth_seg"], digest=f"md5:{md5}")
    monkeypatch.setitem(weights.WEIGHTS, known.name, known)
    assert weights.contract_of(str(file)) == cloth
    assert read_contract(64, "lanczos", weights=file) == replace(cloth, height=64, width=64, resize="lanczos")
    assert read_contract(contract="imagenet", weights=file) == Contract()
    with pytest.raises(UserError, match="no contract named 'clothes'"):
        read_contract(contract="clothes")


def test_a_published_file_without_a_record_has_its_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = builders.classes_file(tmp_path / "any name.onnx")
    assert read_artifact(file).contract == Contract(32, 48)
    md5 = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    known = replace(weights.WEIGHTS["u2net_cloth_seg"], digest=f"md5:{md5}")
    monkeypatch.setitem(weights.WEIGHTS, known.name, known)
    artifact = read_artifact(file)
    assert artifact.contract == replace(CONTRACTS["cloth"], height=32, width=48)
    assert "image contract of these published weights" in artifact.notes[0]


def test_other_channels_repeat_the_means_of_the_contract() -> None:
    assert CONTRACTS["cloth"].with_channels(4).mean == (0.5,) * 4
    assert Contract().with_channels(4).std == (0.229, 0.224, 0.225, 0.229)
    assert Contract().with_channels(1).with_channels(3).mean == Contract().mean


def test_own_cloth_weights_are_exported_under_the_named_contract(
    cli: Cli, checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    made = cli("onnx", "--weights", checkpoint, "--contract", "cloth", "--size", 64, "--out", tmp_path)
    assert made.returncode == 0, made.stderr
    with u2.open_artifact(made.stdout.strip()) as runner:
        assert (runner.contract.mean, runner.contract.shape) == ((0.5,) * 3, (1, 3, 64, 64))
        pixels = np.full((64, 64, 3), 200, np.uint8)
        pixels[0, 0] = 0
        x = runner.input(pixels)
        assert x.max() == 1 and x.min() == -1  # (x / max(x) - 0.5) / 0.5
        assert set(np.unique(runner.mask(photo))) <= {0, 1, 2, 3}
