"""What is made of reports: tables, charts, imports of other tools' numbers, kits for phones, and the roofline."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from u2export.benchmarks.imports import kit as _kit
from u2export.benchmarks.imports.power_log import mean_power
from u2export.benchmarks.imports.rows import Claim, reports
from u2export.benchmarks.imports.tool_files import FORMATS as TOOLS
from u2export.benchmarks.report import Report
from u2export.benchmarks.roofline import BYTES, Estimate
from u2export.benchmarks.roofline import estimate as _estimate
from u2export.benchmarks.tables import charts
from u2export.benchmarks.tables import gather as _gather
from u2export.benchmarks.tables.estimates import shown
from u2export.benchmarks.tables.markdown_page import inserted, overview
from u2export.benchmarks.tables.render import FORMATS, render
from u2export.benchmarks.tables.terminal import terminal
from u2export.errors import UserError, WrongValue
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact
from u2export.files import make_folder, write_text

__all__ = [
    "CHARTS", "CHART_FORMATS", "FORMATS", "PHONES", "ROOFLINE_PRECISIONS", "TOOLS", "Estimate", "Report", "chart",
    "gather", "import_results", "ordered", "overview", "phone_kit", "report_table", "roofline", "roofline_table",
    "tables_text", "update_overview",
]  # fmt: skip

CHARTS, CHART_FORMATS = charts.KINDS, ("png", "svg")
PHONES = tuple(_kit.PLATFORMS)
ROOFLINE_PRECISIONS = tuple(BYTES)
# One report, and one estimate, for the terminal, as rich renders them; and reports in the order of tables.
report_table, roofline_table, ordered = terminal, shown, _gather.ordered


def gather(results: Iterable[str | Path]) -> list[Report]:
    """Return the reports in files, and in all .json files below folders.

    Args:
        results: JSON files of `bench` or of an import, files of published figures, or folders of them.

    Raises:
        UserError: a file holds no results, or there are none.
    """
    return _gather.gather([Path(path) for path in results])


def tables_text(reports: Sequence[Report], form: str = "md") -> str:
    """Return reports as tables.

    Args:
        reports: one for each device; what others published stays apart and marked.
        form: "md" (Markdown), "csv", "html" (one page), or "term" (plain text, 120 columns wide).

    Raises:
        UserError: there is no such form.

    Example:
        >>> tables_text([report], "md").count("random-u2netp-64-onnx-fp32.onnx") > 0
        True
    """
    if form not in FORMATS:
        raise WrongValue(f"no form of a table named {form!r}", f"choose one of {', '.join(FORMATS)}")
    return render(reports, form)


def update_overview(reports: Sequence[Report], file: str | Path, *, check: bool = False) -> Path:
    """Put the overview of reports between the table marks of a Markdown file.

    Args:
        reports: as for `tables_text`.
        file: the Markdown file.
        check: change nothing; a file that would change is an error.

    Raises:
        UserError: the file has no marks, or is stale and `check` is set.
    """
    path = Path(file)
    text = path.read_text(encoding="utf-8")
    fresh = inserted(text, overview(reports), str(path))
    if check and fresh != text:
        raise UserError(f"the table in {path} is stale", "run the same command without --check")
    if not check:
        write_text(fresh, path)
    return path


def chart(
    report: Report | str | Path,
    kinds: Sequence[str] = CHARTS,
    *,
    formats: Sequence[str] = CHART_FORMATS,
    out: str | Path = "artifacts",
    name: str = "",
) -> list[Path]:
    """Draw a report: "pareto" (fidelity against latency), "photos" (fidelity of each photo), "latency" (distribution).

    Args:
        report: results, or the JSON file of them.
        kinds: some of CHARTS.
        formats: "png", "svg" or both.
        out: the folder for `<name>-<kind>.<format>`.
        name: how the files begin; the name of the JSON file, or "results", by default.

    Raises:
        UserError: the results hold nothing to draw.
        Unavailable: matplotlib is not installed.
    """
    results = report if isinstance(report, Report) else Report.load(Path(report))
    stem = name or ("results" if isinstance(report, Report) else Path(report).stem)
    return charts.draw(results, tuple(kinds), tuple(formats), Path(out), stem)


def import_results(
    file: str | Path,
    tool: str,
    *,
    artifact: Artifact | str | Path | None = None,
    kit: str | Path | None = None,
    device: str = "",
    log: str | Path | None = None,
    power: str | Path | None = None,
    precision: str = "",
    published: str = "",
    out: str | Path = "artifacts",
) -> list[Path]:
    """Read latencies that another tool measured into reports; their rows stay marked as imported.

    Args:
        file: what the tool wrote.
        tool: one of TOOLS: "trtexec", "benchmark_app", "onnxruntime-perf", "litert-benchmark", "executorch", "coreml",
            "kit", "aihub".
        artifact: what was timed; without it the weights are unknown.
        kit: the folder of `phone_kit`, in place of `artifact`: it has the artifact, and masks to compare with.
        device: the machine, where the file does not say.
        log: what the tool printed: version, options, device.
        power: a log of tegrastats, nvidia-smi or powermetrics from the time of the run: its mean power times the
            latency is the energy of a picture.
        precision: the arithmetic, where neither file nor artifact says.
        published: the address where others published the file; rows are then marked as theirs.
        out: the folder for `<device>-<file>.json`, one for each device.

    Raises:
        UserError: the file is not what the tool writes, does not say the device, or is of another artifact.
    """
    if artifact is not None and kit is not None:
        raise WrongValue("artifact and kit say the same thing", "give one of them")
    source, folder = Path(file), Path(out)
    opened = artifact if isinstance(artifact, Artifact) else read_artifact(Path(artifact)) if artifact else None
    opened = _kit.artifact_of(Path(kit)) if kit is not None else opened
    judge = _kit.judge(Path(kit), source) if kit is not None else None
    claim = Claim(device, precision, opened, published, mean_power(Path(power)) if power is not None else None)
    made = reports(source, tool, claim, Path(log) if log is not None else None, judge)
    make_folder(folder)
    written = []
    for report in made:
        target = folder / f"{slug(report.device.model or report.device.cpu)}-{slug(source.stem)}.json"
        report.save(target)
        written.append(target)
    return written


def slug(text: str) -> str:
    """Return a device's name as a part of a file name: lower-case letters, digits and single dashes.

    Example:
        >>> slug("Pixel 8 (Tensor G3)")
        'pixel-8-tensor-g3'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "device"


def phone_kit(
    phone: str, artifact: Artifact | str | Path, *, weights: str | Path = "", out: str | Path = "artifacts"
) -> Path:
    """Write a folder to take to a phone: artifact, inputs, expected masks, a timing program, exact commands.

    Args:
        phone: "coreml", "android", or "web" for a page that runs in any browser.
        artifact: a Core ML package; for "android" an artifact of `export("ort", mobile=True)`, of "litert" or of
            "executorch"; for "web" an artifact of "onnx" or "ort".
        weights: the weights that it was made of, where the name in its record does not find them.
        out: the folder for the kit.

    Raises:
        UserError: the artifact is of another target or other weights, or the folder cannot be written.
    """
    from u2export.reference.source import Source

    if phone not in PHONES:
        raise WrongValue(f"no kit for {phone!r}", f"choose one of {', '.join(PHONES)}")
    opened = artifact if isinstance(artifact, Artifact) else read_artifact(Path(artifact))
    source = Source.open(str(weights) or opened.weights.name, opened.contract)
    return _kit.write(opened, source, phone, Path(out))


def roofline(
    model: str | Path,
    device: str = "all",
    precision: str = "fp16",
    *,
    local: bool = True,
    results: str | Path | None = None,
) -> Estimate:
    """Estimate the least latency of a network on devices from their makers' figures; an estimate is never a result.

    Args:
        model: an .onnx file of fixed size.
        device: a device of benchmarks/devices.json, "all", or "none".
        precision: one of ROOFLINE_PRECISIONS; it says how large values are, and which peak of a device counts.
        local: whether to measure the peak and the bandwidth of this machine, which takes about 2 s.
        results: the JSON file of a bench of this network here; it adds the share of the peak that each row reaches.

    Raises:
        UserError: the model cannot be read or has free axes, or there is no such device or precision.

    Example:
        >>> estimate = roofline(artifact.path, "none", local=False)
        >>> round(estimate.work.macs / 1e9, 2)
        0.79
    """
    given = Path(results) if results is not None else None
    return _estimate(Path(model), device, precision, local, given)
