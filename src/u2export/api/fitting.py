"""Find the artifact that keeps a time and a mask budget on a device: targets, precisions, float layers and sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from u2export.api.exporting import Size, read_contract
from u2export.api.measuring import LOCAL
from u2export.benchmarks.fitting.choice import Fitted, Limits, Option
from u2export.benchmarks.fitting.fit import FitRequest
from u2export.benchmarks.fitting.fit import fit as _fit
from u2export.errors import WrongValue
from u2export.reference.fidelity import parse_budget
from u2export.reference.image import Contract

__all__ = ["BUDGET", "Fitted", "Option", "fit"]

BUDGET = "mae=0.006,mae_worst=0.03"
Progress = Callable[[str, int, int], None]


def fit(
    images: str | Path,
    *,
    max_ms: float = 0,
    budget: Mapping[str, float] | str = BUDGET,
    calib: str | Path | None = None,
    calib_limit: int | None = None,
    sizes: Sequence[Size] | str = (),
    targets: Sequence[str] | str = (),
    weights: str | Path = "u2netp",
    resize: str = "bilinear",
    contract: str = "",
    max_float: float = 10,
    limit: int = 32,
    out: str | Path = "artifacts/fit",
    tier: str = "quick",
    samples: int | None = None,
    seconds: float | None = None,
    rounds: int | None = None,
    threads: int = 0,
    device: str = LOCAL,
    device_python: str = "python3",
    ssh_config: str | Path | None = None,
    timeout: float = 300,
    cluster: str = "",
    shared_files: bool = False,
    store: str = "",
    progress: Progress = lambda stage, done, total: None,
) -> Fitted:
    """Search the artifact that is fast enough on a device and whose masks are close enough.

    Every target is exported in each of its precisions and at each size. The device computes the masks of every file, in
    each arithmetic that it has. The masks are compared with those of PyTorch at the size of the photos (1,024 pixels at
    most), and the reference always has the input size of the contract, 320x320 for most weights. A file of another size
    is therefore judged by what the smaller or larger input costs, too. int8 that misses the budget is tried with float
    layers. All files within the mask budget are timed in interleaved rounds, and a file that cannot win any more leaves
    the rounds early.

    Args:
        images: a folder of photos that judge the masks; not the calibration photos.
        max_ms: the longest time of one inference, in milliseconds; the whole 95 % interval must keep it. 0 for any
            time.
        budget: fidelity limits, such as "mae=0.003,iou_worst=0.95".
        calib: calibration photos, as for `export`; without them nothing is tried that needs them, such as int8.
        calib_limit: read no more calibration photos than this, evenly spread; all by default.
        sizes: input sizes to try, such as "320,256" or [320, (256, 384)]; that of the contract by default.
        targets: names of targets, such as "ort,openvino"; by default all that can be exported and run here. For another
            device, all that can be exported here.
        weights, resize, contract: as for `export`.
        max_float: the most that may become float where int8 misses the budget, in percent of the multiply-accumulates.
        limit: judge on no more photos than this, evenly spread; 0 for all.
        out: the folder for the artifacts, `report.json` (as of `bench`) and `fit.json`.
        tier, samples, seconds, rounds, threads, device, device_python, ssh_config, timeout: as for `bench`; 6 rounds
            at least.
        cluster, shared_files, store: the workers of a Dask cluster judge the masks, as for `bench`; they must be like
            this machine. Times are measured on this machine, which also makes the masks of eight photos and compares
            them with those of the workers.
        progress: is called with the stage, steps done, and steps in all.

    Returns:
        The result. `taken` is the option to take: of those within all limits, the closest masks among the options that
        nothing is proven to be faster than. int8 is therefore taken only where it is proven faster. `taken` is None
        where nothing fits, and `closest` is then the nearest miss. `front` lists the options that no other beats in
        time and masks.

    Raises:
        UserError: an argument is wrong, or photos cannot be read or are in both sets. An export that fails is no error:
            `left_out` says why.
        Unavailable: a package is missing, or a named target cannot run on the device.

    Example:
        >>> found = u2.fit(photo, weights="random-u2netp", targets="ort", sizes="32", budget="mae=0.9", out=folder,
        ...                rounds=6, samples=6, seconds=0)
        >>> found.taken.name, found.reference
        ('random-u2netp-32-ort-fp32.onnx', 'random-u2netp-320-pytorch-fp32')
    """
    limits = parse_budget(budget if isinstance(budget, str) else ",".join(f"{k}={v!r}" for k, v in budget.items()))
    if not limits:
        raise WrongValue("the budget has no limit", "give one, such as mae=0.006", "budget")
    if not 0 <= max_ms < float("inf"):
        raise WrongValue(f"{max_ms:g} ms is no time", "give a positive number of milliseconds", "max_ms")
    if not 0 <= max_float <= 100:
        raise WrongValue(f"{max_float:g} % of the work cannot become float", "give 0 to 100 percent", "max_float")
    request = FitRequest(
        Path(images),
        _contracts(sizes, resize, contract, weights),
        read_contract(None, resize, contract, weights),
        Limits(limits, max_ms),
        calib=Path(calib) if calib is not None else None,
        calib_limit=calib_limit,
        weights=str(weights),
        out=Path(out),
        targets=_words(targets),
        max_float=max_float / 100,
        limit=limit,
        tier=tier,
        samples=samples,
        seconds=seconds,
        rounds=rounds,
        threads=threads,
        device=device,
        device_python=device_python,
        ssh_config=Path(ssh_config) if ssh_config is not None else None,
        timeout=timeout,
        cluster=cluster,
        shared_files=shared_files,
        store=store,
    )
    return _fit(request, progress)


def _contracts(sizes: Sequence[Size] | str, resize: str, contract: str, weights: str | Path) -> list[Contract]:
    given = _words(sizes) if isinstance(sizes, str) else list(sizes)
    found = [read_contract(size, resize, contract, weights) for size in given or [None]]
    return list(dict.fromkeys(found))


def _words(given: Sequence[str] | str) -> list[str]:
    """The words of a text with commas, each once."""
    words = given.split(",") if isinstance(given, str) else given
    return list(dict.fromkeys(word.strip() for word in words if word.strip()))
