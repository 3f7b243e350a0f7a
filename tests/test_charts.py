from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from builders import imported_report, mixed_report
from conftest import Cli, two_lines
from PIL import Image

from u2export.benchmarks.latency import Latency
from u2export.benchmarks.tables.charts import FLOOR, KINDS, PAINTERS, draw, drawable, front, name, short
from u2export.errors import UserError
from u2export.reference.fidelity import ImageFidelity

pytest.importorskip("matplotlib")


def test_front_holds_what_nothing_beats() -> None:
    assert front([(3, 1), (1, 3), (2, 2), (3, 3), (2, 4)]) == [1, 2, 0]
    assert front([(1, 1), (1, 1)]) == [0] and front([]) == []
    points = [(float(a), float(b)) for a, b in np.random.default_rng(0).random((60, 2))]
    kept = set(front(points))
    for i, (x, y) in enumerate(points):
        beaten = any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
        assert (i in kept) != beaten


def test_rows_that_can_be_drawn() -> None:
    found = {row.name: (ms, mae) for row, ms, mae in drawable(mixed_report())}
    assert found["u2netp-320-pytorch-fp32"] == (pytest.approx(201, abs=0.01), FLOOR)  # the reference itself
    assert found["u2netp-320-openvino-fp16.xml"][1] == pytest.approx(0.00645)
    assert "u2netp-320-trt-fp16.engine" not in found
    assert drawable(imported_report()) == []


def test_short_names_tell_what_ran() -> None:
    names = [short(row) for row in mixed_report().rows]
    assert names[0] == "pytorch fp32" and short(imported_report().rows[0]).endswith("(imported)")
    odd = replace(mixed_report().rows[1], runtime={"runtime": "OpenVINO", "arithmetic": "bf16"})
    assert short(odd) == "onnx fp32 run in bf16"
    twice = replace(mixed_report(), rows=(*mixed_report().rows, replace(mixed_report().rows[2], name="mixed.onnx")))
    assert name(twice, twice.rows[0]) == "pytorch fp32" and name(twice, twice.rows[4]).startswith("mixed.onnx")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    yield draw(mixed_report(), KINDS, ("png", "svg"), tmp_path_factory.mktemp("charts"), "r")


def test_pictures_show_every_row(pictures: list[Path]) -> None:
    assert [p.name for p in pictures] == [f"r-{kind}.{suffix}" for kind in KINDS for suffix in ("png", "svg")]
    for path in pictures:
        if path.suffix == ".png":
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
            assert image.width < 1200 and len(np.unique(pixels, axis=0)) > 50 and path.stat().st_size < 150_000
        else:
            root = ElementTree.parse(path).getroot()
            assert root.tag.endswith("svg") and len(list(root.iter())) > 100


def test_titles_name_the_chart_and_the_device() -> None:
    made = replace(mixed_report(), device=replace(mixed_report().device, cpu="処理装置 $x$"))
    wanted = ("Fidelity against latency", "Fidelity of each photo", "Distribution of latencies")
    for kind, what in zip(KINDS, wanted, strict=True):
        title = PAINTERS[kind](made).axes[0].get_title(loc="left")
        assert title.startswith(f"{what}, ") and "2 cores" in title and r"\$x\$" in title


def test_svg_is_the_same_each_time(pictures: list[Path], tmp_path: Path) -> None:
    again = draw(mixed_report(), ("pareto",), ("svg",), tmp_path, "r")
    assert again[0].read_bytes() == pictures[1].read_bytes()


def test_results_without_what_a_chart_needs(tmp_path: Path) -> None:
    bare = replace(
        mixed_report(), rows=tuple(replace(r, latency=Latency(), images={}) for r in mixed_report().rows[1:])
    )
    for kind, says in (("pareto", "both a latency"), ("photos", "masks that were compared"), ("latency", "samples")):
        with pytest.raises(UserError, match=says):
            draw(bare, (kind,), ("png",), tmp_path, "r")
    assert not list(tmp_path.iterdir())


def test_equal_masks_and_one_sample_can_be_drawn(tmp_path: Path) -> None:
    same = ImageFidelity(0.0, 0.0, 1.0, 1.0, 1.0, 0.0)
    row = replace(mixed_report().rows[1], images={"a.png": same}, latency=Latency(((1_000_000,),)))
    assert len(draw(replace(mixed_report(), rows=(row,), baseline=""), KINDS, ("png",), tmp_path, "one")) == 3


def test_chart_command(cli: Cli, tmp_path: Path) -> None:
    mixed_report().save(tmp_path / "r.json")
    done = cli("chart", tmp_path / "r.json", "--kind", "photos", "--format", "png", "--out", tmp_path / "out")
    assert done.stdout.split() == [str(tmp_path / "out" / "r-photos.png")], done.stderr
    two_lines(cli("chart", tmp_path / "none.json"), "no such file")
