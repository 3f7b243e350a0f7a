"""What the gate says about a report: findings, the judgement of every artifact, and the verdicts of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from u2export.benchmarks.gate.policy import Policy

SCHEMA = 1
# The gravest first.
GRAVITY = ("missing", "fail", "inconclusive", "new", "pass")
EXIT = {"pass": 0, "fail": 1, "inconclusive": 3}
TITLES: Mapping[str, str] = {
    "mean mae": "mean MAE", "mean iou": "mean IoU", "mean boundary_f": "mean boundary F", "worst mae": "worst MAE",
    "worst iou": "worst IoU", "worst boundary_f": "worst boundary F", "collapse": "foreground area",
    "finite": "finite values", "latency": "latency", "size": "size", "ran": "ran", "truth maxf": "maxF to truth",
    "truth mae": "MAE to truth", "truth s": "S to truth", "artifact": "artifact",
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One measure of one artifact.

    Attributes:
        measure: a key of TITLES.
        verdict: "pass", "fail", "inconclusive", "new" or "missing".
        text: the finding in words.
        value: the loss or the ratio; None if there is no number.
        limit: the largest value that the policy allows; None if there is no number.
        low, high: the ends of the confidence interval; None if there is no interval.
        photo: the photo of the finding; empty if the finding is about all photos.
        more: how many more samples would decide an inconclusive finding: photos, or rounds for latency.
    """

    measure: str
    verdict: str
    text: str
    value: float | None = None
    limit: float | None = None
    low: float | None = None
    high: float | None = None
    photo: str = ""
    more: int | None = None

    @property
    def title(self) -> str:
        """The name of the measure for readers."""
        return TITLES[self.measure]


@dataclass(frozen=True)
class Judgement:
    """All findings about one artifact. The gravest finding gives the verdict."""

    artifact: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """One of GRAVITY."""
        found = {f.verdict for f in self.findings}
        return next(verdict for verdict in GRAVITY if verdict in found)

    @property
    def reasons(self) -> list[Finding]:
        """The findings that made the verdict."""
        return [f for f in self.findings if f.verdict == self.verdict]


@dataclass(frozen=True)
class Verdicts:
    """The judgements of one report.

    Attributes:
        judgements: one for each artifact of the report and of the accepted state.
        policy: the policy of the check. It says what new, missing and inconclusive artifacts count as.
        photos: the number of photos in the report.
    """

    judgements: tuple[Judgement, ...]
    policy: Policy
    photos: int

    def counts_as(self, judgement: Judgement) -> str:
        """What the policy makes of the verdict: "pass", "fail" or "inconclusive"."""
        return self.policy.verdicts.get(judgement.verdict, judgement.verdict)

    @property
    def outcome(self) -> str:
        """The gravest judgement: "fail", "inconclusive" or "pass"."""
        found = {self.counts_as(j) for j in self.judgements}
        return next((o for o in ("fail", "inconclusive") if o in found), "pass")

    @property
    def exit_code(self) -> int:
        """The exit code of `u2export check`: 0 for pass, 1 for fail, 3 for inconclusive."""
        return EXIT[self.outcome]

    def to_json(self) -> dict[str, Any]:
        """Return all findings as plain data."""
        rows = [
            {"artifact": j.artifact, "verdict": j.verdict, "counts_as": self.counts_as(j),
             "findings": [asdict(f) for f in j.findings]}
            for j in self.judgements
        ]  # fmt: skip
        head = {"schema": SCHEMA, "outcome": self.outcome, "exit_code": self.exit_code, "photos": self.photos}
        return {**head, "rows": rows}
