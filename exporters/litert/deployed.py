"""The network as LiteRT gets it: the same maps by operations that its kernels have, and ports as the caller wants them.

U²-Net resizes six side maps, joins them and fuses them with a 1x1 convolution. Here the fusion is a part of the side
convolutions, and the resized maps are added: resizing and fusing are linear, so the result is the same. XNNPACK joins
no more than five tensors, and would leave such a join of six to a slow kernel. In int8, the last steps stay in float:
they cost little, and rounding there is seen in the mask as it is.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn

from u2export.calibration.condition import fold_batch_norm
from u2export.reference.image import FLAT, Contract
from u2export.reference.model import U2Net, upsample_to
from u2export.reference.onnx_export import OUTPUT


class Backbone(nn.Module):
    """The encoder and the decoder: an input (N, C, H, W) to the six features that the side outputs read."""

    def __init__(self, network: U2Net) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As `U2Net.features`."""
        return tuple(self.network.features(x))


class Sides(nn.Module):
    """The side convolutions with their share of the fusion: six features to six terms of the fused map's logits."""

    def __init__(self, network: U2Net) -> None:
        super().__init__()
        fuse, outputs = network.outconv, network.out_channels
        shares = torch.split(fuse.weight.detach().double()[:, :, 0, 0], outputs, 1)
        assert fuse.bias is not None
        for number, share in enumerate(shares, start=1):
            side = copy.deepcopy(cast(nn.Conv2d, network.get_submodule(f"side{number}")))
            assert side.bias is not None
            weight = torch.einsum("ok,kchw->ochw", share, side.weight.detach().double())
            bias = share @ side.bias.detach().double() + (fuse.bias.detach().double() if number == 1 else 0)
            side.weight, side.bias = nn.Parameter(weight.float(), False), nn.Parameter(bias.float(), False)
            self.add_module(f"side{number}", side)

    def forward(self, features: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Finest first."""
        return tuple(self.get_submodule(f"side{n}")(y) for n, y in enumerate(features, start=1))


class Head(nn.Module):
    """The six terms to d0."""

    def forward(self, terms: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """All but the first are resized to the size of the first."""
        total = terms[0]
        for term in terms[1:]:
            total = total + upsample_to(term, terms[0])
        return torch.sigmoid(total)


class Preprocessing(nn.Module):
    """Pixels (1, H, W, C) uint8 to the network's input (1, C, H, W), as the contract says."""

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.tensor(contract.mean).view(1, -1, 1, 1))
        self.std = nn.Buffer(torch.tensor(contract.std).view(1, -1, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Division by the maximum, mean and standard deviation."""
        x = pixels.permute(0, 3, 1, 2).float()
        x = x / x.amax((1, 2, 3), keepdim=True).clamp(min=FLAT)
        return (x - self.mean) / self.std


class Stretch(nn.Module):
    """d0 to the mask: its minimum becomes 0, its maximum becomes 1."""

    def forward(self, d0: torch.Tensor) -> torch.Tensor:
        """As the contract's postprocessing."""
        low, high = d0.amin((1, 2, 3), keepdim=True), d0.amax((1, 2, 3), keepdim=True)
        return (d0 - low) / (high - low).clamp(min=FLAT)


class Deployed(nn.Module):
    """The whole model; its parts are modules, so that the names of operations say which part they belong to."""

    def __init__(self, network: U2Net, contract: Contract, nhwc: bool, embed_preprocess: bool) -> None:
        super().__init__()
        folded = fold_batch_norm(network)  # the converter does this too, and takes longer
        self.backbone, self.sides, self.head = Backbone(folded), Sides(folded), Head()
        self.channels_last = nhwc or embed_preprocess
        self.preprocessing = Preprocessing(contract) if embed_preprocess else None
        self.stretch = Stretch() if embed_preprocess else None

    def entry(self, image: torch.Tensor) -> torch.Tensor:
        """What the model takes to the network's input (1, C, H, W)."""
        if self.preprocessing is not None:
            made: torch.Tensor = self.preprocessing(image)
            return made
        return image.permute(0, 3, 1, 2) if self.channels_last else image

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Image to mask; the names of the ports are those of the ONNX graph."""
        mask = self.head(self.sides(self.backbone(self.entry(image))))
        if self.stretch is not None:
            mask = self.stretch(mask)
        return {OUTPUT: mask.permute(0, 2, 3, 1) if self.channels_last else mask}
