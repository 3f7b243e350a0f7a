"""What is made of reports: tables, charts, imports of other tools' numbers, kits for phones, and the roofline."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from u2export.benchmarks import roofline as _roofline
from u2export.benchmarks.imports import kit as _kit
from u2export.benchmarks.imports.tool_files import FORMATS as TOOLS
from u2export.benchmarks.imports.tool_files import Claim, reports
from u2export.benchmarks.report import Report
from u2export.benchmarks.tables import charts
from u2export.benchmarks.tables import columns as _tables
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact
from u2export.files import make_folder, write_text

__all__ = [
    "CHARTS", "CHART_FORMATS", "FORMATS", "PHONES", "TOOLS", "Report", "chart", "gather", "import_results", "ordered",
    "overview", "phone_kit", "report_table", "tables_text", "update_overview",
]  # fmt: skip

FORMATS = _tables.FORMATS
CHARTS, CHART_FORMATS = charts.KINDS, ("png", "svg")
PHONES = tuple(_kit.PLATFORMS)
# One report for the terminal, as rich renders it; reports in the order of tables; one line for each device and artifact.
report_table, ordered, overview = _tables.terminal, _tables.ordered, _tables.overview
