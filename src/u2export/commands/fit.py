"""`u2export fit`: the artifact that keeps a time and a mask budget on a device."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from u2export.api import fitting, measuring
from u2export.api.fitting import Fitted, Option
from u2export.commands import options as o
from u2export.commands.console import echo, remark, waiting, wide
from u2export.errors import UserError


@o.grouped
def fit(
    images: Annotated[Path, typer.Option(help="Photos that judge the masks; not those of --calib.")],
    calib: o.Calib = None,
    max_ms: Annotated[
        float, typer.Option("--max-ms", min=0, help="Longest time of one inference in milliseconds; 0 for any time.")
    ] = 0,
    budget: Annotated[str, typer.Option(help="Fidelity limits, such as mae=0.003,iou_worst=0.95.")] = fitting.BUDGET,
    sizes: Annotated[
        str,
        typer.Option(
            metavar="N|HxW[,…]",
            help="Input sizes to try, such as 320,256; that of the contract by default.",
            show_default=False,
        ),
    ] = "",
    targets: Annotated[
        str,
        typer.Option(
            metavar="NAME[,…]",
            help="Targets to try, such as ort,openvino; by default all that run here.",
            show_default=False,
        ),
    ] = "",
    max_float: Annotated[
        float,
        typer.Option(
            min=0, max=100, metavar="PERCENT", help="Most of the work that int8 may leave in float to keep its budget."
        ),
    ] = 10,
    weights: o.Weights = "u2netp",
    resize: o.Resize = "bilinear",
    contract: o.Contract = "",
    calib_limit: Annotated[
        int | None,
        typer.Option(min=2, help="Read no more calibration photos than this, evenly spread.", show_default=False),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, help="Judge on no more photos than this, evenly spread; 0 for all.")
    ] = 32,
    out: Annotated[Path, typer.Option(help="Folder for the artifacts, report.json and fit.json.")] = Path(
        "artifacts/fit"
    ),
    tier: Annotated[
        str, o.choice(tuple(measuring.TIERS), "How long each row is timed, as for u2export bench.")
    ] = "quick",
    samples: Annotated[int | None, typer.Option(min=1, help="Least number of samples per row.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Least time per row.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Interleaved rounds, 6 or more.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of each runtime; 0 for all processors.")] = 0,
    device: Annotated[
        str, typer.Option(metavar="local|ssh://USER@HOST[:PORT]", help="The device to fit to.")
    ] = measuring.LOCAL,
    cluster: o.Cluster = "",
    shared_files: o.SharedFiles = False,
    store: o.Store = "",
    device_python: Annotated[str, typer.Option(help="Python on the device.")] = "python3",
    ssh_config: Annotated[Path | None, typer.Option(help="ssh's configuration, in place of ~/.ssh/config.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for one answer of a runtime.")] = 300,
    as_json: o.AsJson = "",
) -> None:
    """Find the artifact that is fast enough on a device and whose masks are close enough.

    Targets, precisions, float layers and sizes are exported and judged against PyTorch at the size of the photos. What
    keeps the mask budget is timed in interleaved rounds. The exit code is 1 if nothing fits. With --cluster, workers
    like this machine judge the masks; times are still measured here.
    """
    with waiting("reading photos") as show:
        found = fitting.fit(
            images, max_ms=max_ms, budget=budget, calib=calib, calib_limit=calib_limit, sizes=sizes, targets=targets,
            weights=weights, resize=resize, contract=contract, max_float=max_float, limit=limit, out=out, tier=tier,
            samples=samples, seconds=seconds, rounds=rounds, threads=threads, device=device,
            cluster=cluster, shared_files=shared_files, store=store, device_python=device_python, ssh_config=ssh_config,
            timeout=timeout,
            progress=lambda stage, done, total: show(f"{stage} ({done + 1} of {max(total, done + 1)})"),
        )  # fmt: skip
    if not o.print_json({**found.to_json(), "files": [str(path) for path in found.files]}, as_json):
        _show(found)
    if not found.taken:
        raise UserError(*_miss(found))


def _show(found: Fitted) -> None:
    """Print a table of the options, what was left out, and the artifact to take."""
    from rich.table import Table

    front = {option.name for option in found.front}
    table = Table(box=None, pad_edge=False)
    for title in ("", "option", "computes in"):
        table.add_column(title, overflow="fold")
    for title in ("ms (95 %)", "MAE", "worst", "IoU worst", "float"):
        table.add_column(title, justify="right")
    table.add_column("remark", overflow="fold")
    for option in found.options:
        table.add_row(*_cells(option, found, option.name in front))
    wide().print(table)
    remark(f"masks against {found.reference} at the size of the photos; * is the front of time and MAE")
    remark(*(f"left out: {name}: {why}" for name, why in found.left_out.items()))
    if found.taken:
        echo(found.taken.path)
        remark(f"  keeps {found.limits.in_words()}; next: u2export table {shlex.quote(str(found.files[-1]))}")


def _cells(option: Option, found: Fitted, on_front: bool) -> list[str]:
    mark = "->" if option is found.taken else "*" if on_front else ""
    masks, ms = option.fidelity, option.ms
    said = option.problem or option.broken or option.stopped
    if not said and not option.fast(found.limits):
        said = f"not proven to keep {found.limits.max_ms:g} ms"
    time = "" if ms is None else f"{ms.value:.1f} ({ms.low:.1f}-{ms.high:.1f})" if ms.known else f"about {ms.value:.0f}"
    figures = [f"{masks.mae:.4f}", f"{masks.mae_worst:.4f}", f"{masks.iou_worst:.3f}"] if masks else ["", "", ""]
    share = f"{100 * option.float_share:.1f} %" if option.float_share else ""
    return [mark, option.name, option.arithmetic, time, *figures, share, said]


def _miss(found: Fitted) -> tuple[str, str]:
    """The problem and the hint where nothing fits."""
    problem = f"nothing keeps {found.limits.in_words()}"
    near = found.closest
    if near is None or near.ms is None:
        return f"{problem}: nothing ran", f"{found.files[0]} says why"
    parts = [near.broken] if near.broken else []
    if not near.fast(found.limits):
        parts.append(f"{near.ms.value:.0f} ms")
    hint = "allow more time or larger differences, more float layers, or other sizes"
    return f"{problem}; closest: {near.name}: {', '.join(parts)}", f"{near.path} holds it; {hint}"
