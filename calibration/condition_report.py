"""What conditioning changed, as plain data: when a channel is shifted, which channels were, and which could not be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from u2export.errors import UserError

SCHEMA = 1


@dataclass(frozen=True)
class Criteria:
    """When a channel is shifted, and how far.

    Attributes:
        sqnr: a reader's signal to noise in dB, the noise being what 8-bit weights (per output channel) make of this
            channel's mean alone; channels that leave more are not worth the extra channels.
        gain: least ratio of the channel's largest value before to after.
        margin: distance kept below the smallest value seen, as a share of the spread seen.
        rescale: multiply the shifted channel by the power of two that brings it to its neighbours' range.
    """

    sqnr: float = 30.0
    gain: float = 4.0
    margin: float = 0.25
    rescale: bool = True


@dataclass(frozen=True)
class Change:
    """One shifted channel.

    Attributes:
        producer, index: the convolution that writes it; its place in execution order.
        channel: which of its outputs.
        shift: mu, subtracted.
        scale: power of two multiplied afterwards.
        constant: value of the producer's constant channel, 0 where it needs none.
        low, high: smallest and largest value over the calibration inputs, before.
        margin: low - shift.
        sqnr: the worst reader's signal to noise in dB before (see `Criteria`).
        readers: convolutions that read it.
        bias_before, bias_after: largest |bias| among the readers.
    """

    producer: str
    index: int
    channel: int
    shift: float
    scale: float
    constant: float
    low: float
    high: float
    margin: float
    sqnr: float
    readers: tuple[str, ...]
    bias_before: float = 0.0
    bias_after: float = 0.0


@dataclass(frozen=True)
class Refused:
    """A channel worth shifting that was not, and what stands in the way."""

    producer: str
    channel: int
    low: float
    high: float
    sqnr: float
    reason: str


@dataclass(frozen=True)
class ConditionReport:
    """What conditioning changed.

    Attributes:
        changes: shifted channels in execution order; empty when the network has none worth it.
        refused: channels that would have been.
        inputs: how many calibration inputs there were.
        digest: sha256 over theirs, in order.
        criteria: when a channel is shifted.
    """

    changes: tuple[Change, ...] = ()
    refused: tuple[Refused, ...] = ()
    inputs: int = 0
    digest: str = ""
    criteria: Criteria = field(default_factory=Criteria)
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        data = asdict(self)
        data["changes"] = [{**c, "readers": list(c["readers"])} for c in data["changes"]]
        data["refused"] = list(data["refused"])
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ConditionReport:
        """The report that `to_json` wrote.

        Raises:
            UserError: of another schema, or damaged.
        """
        if data.get("schema") != SCHEMA:
            raise UserError(
                f"the conditioning report has schema {data.get('schema')}, this u2export reads {SCHEMA}",
                "condition the model again",
            )
        try:
            fields = dict(data)
            fields["changes"] = tuple(Change(**{**c, "readers": tuple(c["readers"])}) for c in fields["changes"])
            fields["refused"] = tuple(Refused(**r) for r in fields["refused"])
            fields["criteria"] = Criteria(**fields["criteria"])
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise UserError(f"damaged conditioning report ({error})", "condition the model again") from None
