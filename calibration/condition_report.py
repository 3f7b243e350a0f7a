"""What conditioning changed, as plain data: the criteria, the shifted channels, and the channels it had to refuse."""

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
        sqnr: highest signal to noise of a reader, in dB, at which a shift is worth the extra channels. The noise is
            what 8-bit weights (one scale per output channel) make of this channel's mean alone.
        gain: smallest ratio of the channel's largest value before the shift to the largest value after the shift.
        margin: distance between the shift and the smallest value seen, as a share of the range seen.
        rescale: multiply the shifted channel by the power of two that brings it to the range of its neighbours.
    """

    sqnr: float = 30.0
    gain: float = 4.0
    margin: float = 0.25
    rescale: bool = True


@dataclass(frozen=True)
class Change:
    """One shifted channel.

    Attributes:
        producer, index: the convolution that writes the channel, and its place in execution order.
        channel: the output channel of the producer.
        shift: mu, which is subtracted.
        scale: power of two by which the shifted channel is multiplied.
        constant: value of the producer's constant channel; 0 where the producer needs none.
        low, high: smallest and largest value over the calibration inputs, before the shift.
        margin: low - shift.
        sqnr: the worst reader's signal to noise in dB before the shift (see `Criteria`).
        readers: names of the convolutions that read the channel.
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
    """A channel that is worth a shift but cannot be shifted, and the reason."""

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
        changes: shifted channels in execution order; empty where no channel is worth a shift.
        refused: channels that are worth a shift but cannot be shifted.
        inputs: the number of calibration inputs.
        digest: sha256 over the digests of the inputs, in order.
        criteria: when a channel is shifted.
    """

    changes: tuple[Change, ...] = ()
    refused: tuple[Refused, ...] = ()
    inputs: int = 0
    digest: str = ""
    criteria: Criteria = field(default_factory=Criteria)
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        data = asdict(self)
        data["changes"] = [{**c, "readers": list(c["readers"])} for c in data["changes"]]
        data["refused"] = list(data["refused"])
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ConditionReport:
        """Read a report that `to_json` wrote.

        Raises:
            UserError: the report has another schema, or it is damaged.
        """
        if data.get("schema") != SCHEMA:
            raise UserError(
                f"the conditioning report has schema {data.get('schema')}; this u2export reads schema {SCHEMA}",
                "condition the model again",
            )
        try:
            fields = dict(data)
            fields["changes"] = tuple(Change(**{**c, "readers": tuple(c["readers"])}) for c in fields["changes"])
            fields["refused"] = tuple(Refused(**r) for r in fields["refused"])
            fields["criteria"] = Criteria(**fields["criteria"])
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise UserError(f"the conditioning report is damaged ({error})", "condition the model again") from None
