"""The gate: whether artifacts got worse than the accepted state, and how they do from run to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from u2export.benchmarks.gate import formats, judging
from u2export.benchmarks.gate import trend as _trend
from u2export.benchmarks.gate.acceptance import accept
from u2export.benchmarks.gate.baseline import Baseline, differences, told
from u2export.benchmarks.gate.policy import Policy
from u2export.benchmarks.gate.saved_masks import THRESHOLD, SavedMasks
from u2export.benchmarks.gate.trend import Line
from u2export.benchmarks.gate.verdicts import Finding, Judgement, Verdicts
from u2export.benchmarks.report import Report

__all__ = [
    "FORMATS", "THRESHOLD", "TREND_FORMATS", "Baseline", "Finding", "Judgement", "Line", "Policy", "Report",
    "SavedMasks", "Verdicts", "baseline_changes", "check", "described_baseline", "trend", "trend_table", "trend_text",
    "update_baseline", "verdicts_table", "verdicts_text",
]  # fmt: skip

Given = TypeVar("Given")
FORMATS, TREND_FORMATS = formats.FORMATS, _trend.FORMATS
# For the terminal, as rich renders it; and as text in one of the formats but "term".
verdicts_table, verdicts_text = formats.terminal, formats.render
trend_table, trend_text = _trend.terminal, _trend.render


def check(
    report: Report | str | Path,
    baseline: Baseline | str | Path,
    policy: Policy | str | Path | None = None,
    *,
    masks: SavedMasks | str | Path | None = None,
    baseline_masks: SavedMasks | str | Path | None = None,
    threshold: float = THRESHOLD,
) -> Verdicts:
    """Judge whether the artifacts of a report got worse than the accepted state.

    Args:
        report: the results of a bench, or the JSON file of it.
        baseline: the accepted state, or its JSON file.
        policy: the limits, or a TOML file of limits over the default ones; the default limits by default.
        masks: the saved masks of the bench, or their .npz file. The fidelity is then computed anew.
        baseline_masks: the saved masks of the accepted state; where `baseline` is a file, those beside it by default.
        threshold: where masks are cut, from 0 to 1; another one than 0.5 needs both saved masks.

    Returns:
        The verdict of each artifact with its findings. `outcome` is "pass", "fail" or "inconclusive".

    Raises:
        UserError: a file is missing or damaged, the report is of an interrupted run, or the two are of other photos,
            devices, weights, contracts or arithmetics.

    Example:
        >>> accepted, _ = update_baseline(report, folder / "baseline.json")
        >>> u2.check(report, accepted).outcome
        'pass'
    """
    return judging.judge(
        _path(report), _path(baseline), _path(policy), masks=_path(masks), accepted_masks=_path(baseline_masks),
        threshold=threshold,
    )  # fmt: skip


def update_baseline(
    report: Report | str | Path,
    file: str | Path,
    *,
    replace: bool = False,
    any_device: bool | None = None,
    masks: str | Path | None = None,
    why: str = "",
) -> tuple[Baseline, list[tuple[str, str, str, str]]]:
    """Accept results: write them into a baseline file; other artifacts in the file stay.

    Args:
        report: the results of a bench, or the JSON file of it.
        file: the baseline to write.
        replace: begin a new baseline, whatever the file holds.
        any_device: whether the masks are the same on any machine; by default, where nothing was timed.
        masks: the saved masks of the bench; they are kept beside the baseline as `.masks.npz`.
        why: why these results are accepted; the file keeps it.

    Returns:
        The new baseline, and what changed as (artifact, what, then, now).

    Raises:
        UserError: the report is of an interrupted run, a row was not measured, or the photos or the device are others
            than those of the baseline.
    """
    given = Path(masks) if masks is not None else None
    accepted = accept(_path(report), Path(file), masks=given, replace=replace, any_device=any_device, why=why)
    return accepted.new, list(differences(accepted.old, accepted.new)) if accepted.old else []


def described_baseline(baseline: Baseline | str | Path) -> tuple[Baseline, dict[str, dict[str, str]]]:
    """Return a baseline, and what it says of each artifact, by name.

    Raises:
        UserError: the file is missing or damaged.
    """
    loaded = _loaded(baseline)
    return loaded, told(loaded)


def baseline_changes(old: Baseline | str | Path, new: Baseline | str | Path) -> list[tuple[str, str, str, str]]:
    """Return what changed from one baseline to another, as (artifact, what, then, now).

    Raises:
        UserError: a file is missing or damaged.
    """
    return list(differences(_loaded(old), _loaded(new)))


def trend(
    reports: Sequence[Report | str | Path],
    baseline: Baseline | str | Path | None = None,
    policy: Policy | str | Path | None = None,
) -> list[Line]:
    """Return how artifacts did from run to run: steady, new, sustained, recovered or flaky.

    Args:
        reports: results of benches, or their JSON files, in any order.
        baseline: the accepted state that each run is judged against; the first run by default.
        policy: the limits, as for `check`.

    Raises:
        UserError: there are no results, or a run cannot be compared.
    """
    against = _loaded(baseline) if baseline is not None else None
    limits = policy if isinstance(policy, Policy) or policy is None else Policy.load(Path(policy))
    return _trend.trend([_results(report) for report in reports], against, limits)


def _path(given: Given | str | Path) -> Given | Path:
    """Return a text as a path, and anything else as it is."""
    return Path(given) if isinstance(given, str) else given


def _results(report: Report | str | Path) -> Report:
    return report if isinstance(report, Report) else Report.load(Path(report))


def _loaded(baseline: Baseline | str | Path) -> Baseline:
    return baseline if isinstance(baseline, Baseline) else Baseline.load(Path(baseline))
