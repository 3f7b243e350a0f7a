"""Where the reports of a table come from: files of results and of published figures, and folders of such files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from u2export.benchmarks.imports import published
from u2export.benchmarks.report import IN_BROWSER, Report
from u2export.errors import UserError
from u2export.files import is_hidden, read_json


def gather(paths: Iterable[Path]) -> list[Report]:
    """Return the reports in files, and in all .json files below folders: results, and published figures.

    A folder may hold other JSON files, such as the records of artifacts; this function ignores them.

    Raises:
        UserError: a file that was named holds neither, or nothing holds results.
    """
    paths = list(paths)
    found: list[Report] = []
    for path in paths:
        if path.is_dir():
            found += [report for file in _below(path) for report in _reports(file, named=False)]
        else:
            found += _reports(path, named=True)
    if not found:
        where = ", ".join(map(str, paths))
        raise UserError(f"no results in {where}", "give files that `u2export bench --json` or `import` wrote")
    return found


def _below(folder: Path) -> list[Path]:
    """Return the .json files below a folder, without hidden ones: an interrupted run leaves half of its work there."""
    return [file for file in sorted(folder.rglob("*.json")) if file.is_file() and not is_hidden(file, folder)]


def _reports(file: Path, named: bool) -> list[Report]:
    """Return the reports in a file; none if a file that the caller did not name holds something else."""
    data = read_json(file, "results")
    if published.is_published(data):
        return published.load(file)
    if named or (isinstance(data, dict) and {"schema", "device", "rows", "settings"} <= data.keys()):
        return [Report.load(file)]
    return []


def ordered(reports: Iterable[Report]) -> list[Report]:
    """Return measured and imported reports first, published ones after them; otherwise in the order given."""
    return sorted(reports, key=is_published)


def is_published(report: Report) -> bool:
    """Return whether others published all rows of a report."""
    return bool(report.rows) and all(row.provenance == "published" for row in report.rows)


def is_in_browser(report: Report) -> bool:
    """Return whether the report is of a browser; its times are never compared with those of native runtimes."""
    return bool(report.rows) and all(row.provenance == IN_BROWSER for row in report.rows)
