"""The reference from which exporters start: weights, the PyTorch network and the image contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from u2export.reference import weights
from u2export.reference.fidelity import Fidelity, compare
from u2export.reference.image import Contract, Floats, digest
from u2export.reference.verification import verification_inputs

if TYPE_CHECKING:
    from u2export.reference.model import U2Net
    from u2export.reference.weights import Identity


@dataclass(frozen=True)
class Source:
    """One set of weights under one image contract.

    Attributes:
        weights: name and hash of the weights.
        model: the reference network in evaluation mode. It must not be changed; change a deep copy.
        contract: pre- and postprocessing, and with it the input size.
    """

    weights: Identity
    model: U2Net = field(repr=False)
    contract: Contract

    @classmethod
    def open(cls, name: str, contract: Contract | None = None) -> Source:
        """Load weights by name or file; the contract gets the number of input channels of the model.

        Args:
            name: named weights, random-<variant>, or a .pth, .safetensors or .onnx file.
            contract: pre- and postprocessing; by default that of published weights, else the standard one of 320x320.

        Raises:
            UserError: the name is unknown, or the file cannot be read or holds no U²-Net.
            Unavailable: PyTorch is not installed, or named weights could not be fetched.
        """
        identity, model = weights.load(name)
        contract = (contract or weights.contract_of(name)).with_channels(model.in_channels)
        return cls(identity, model, contract)

    @property
    def variant(self) -> str:
        """ "u2net", "u2netp" or "u2net-custom"."""
        return self.model.variant.name

    def predict(self, batch: Floats) -> Floats:
        """Return the reference's fused map d0 (N, K, H, W) float32 of inputs (N, C, H, W) float32."""
        import torch

        with torch.inference_mode():
            d0: Floats = self.model(torch.from_numpy(batch))[0].numpy()
        return d0

    @cached_property
    def verification(self) -> tuple[tuple[Floats, Floats], ...]:
        """Network input and the reference's d0 of the bundled verification photos, each with N = 1."""
        return tuple((x, self.predict(x)) for x in verification_inputs(self.contract))

    @cached_property
    def golden(self) -> dict[str, Any]:
        """The golden record of these weights under this contract (see `u2export.reference.golden`)."""
        from u2export.reference.golden import picture, summary

        return summary(self.contract, self.predict(self.contract.tensor(picture(self.contract.channels)))[0])

    def stamp(self, precision: str, tools: Mapping[str, str]) -> dict[str, Any]:
        """What is written into a model file: variant, weights, precision, versions of tools."""
        return {
            "variant": self.variant,
            "weights": self.weights.name,
            "weights_sha256": self.weights.sha256,
            "precision": precision,
            "tools": dict(tools),
        }

    def compare(self, runner: Callable[[Floats], Floats], more: Iterable[Floats] = ()) -> Fidelity:
        """Compare a runner's fused map with the reference's, on the verification photos and on further inputs.

        The reference's maps are computed once for all comparisons: an export may compare many candidates.

        Args:
            runner: takes an input (1, C, H, W), returns d0 (1, K, H, W).
            more: further network inputs.

        Raises:
            UserError: the runner gives another number of maps, or maps of another size.
        """
        pairs = chain(self.verification, ((x, self._further(x)) for x in more))
        return Fidelity(tuple(compare(runner(x)[0], d0[0]) for x, d0 in pairs))

    @cached_property
    def _known(self) -> dict[str, Floats]:
        """The reference's d0 of further inputs, by the digest of the input."""
        return {}

    def _further(self, x: Floats) -> Floats:
        key = digest(x)
        if key not in self._known:
            self._known[key] = self.predict(x)
        return self._known[key]
