"""U²-Net (Qin et al., "U²-Net: Going deeper with nested U-structure for salient object detection",
Pattern Recognition 106, 2020) as one configurable PyTorch module.

Section 3.1 of the paper gives the residual U-block RSU-L, section 3.2 gives the network of eleven such blocks, and
table 1 gives the widths. Parameter names and shapes are those of the published checkpoints, so an official ``.pth``
loads with ``strict=True``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from u2export.errors import UserError, WrongValue

ENCODERS = ("stage1", "stage2", "stage3", "stage4", "stage5", "stage6")
DECODERS = ("stage5d", "stage4d", "stage3d", "stage2d", "stage1d")


@dataclass(frozen=True)
class Width:
    """Channels of one residual U-block: inside the U (M in the paper) and at its output (C_out)."""

    middle: int
    out: int


@dataclass(frozen=True)
class Variant:
    """The widths of the eleven blocks, encoder first, in the order of `ENCODERS` + `DECODERS`."""

    name: str
    widths: tuple[Width, ...]


VARIANTS: dict[str, Variant] = {
    "u2net": Variant(
        "u2net",
        tuple(
            Width(m, c)
            for m, c in (
                (32, 64), (32, 128), (64, 256), (128, 512), (256, 512), (256, 512),
                (256, 512), (128, 256), (64, 128), (32, 64), (16, 64),
            )
        ),
    ),
    "u2netp": Variant("u2netp", (Width(16, 64),) * 11),
}  # fmt: skip


class ConvBnRelu(nn.Module):
    """3x3 convolution, batch norm, ReLU: the paper's basic unit."""

    def __init__(self, inputs: int, outputs: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(outputs)
        self.relu_s1 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        y: Tensor = self.relu_s1(self.bn_s1(self.conv_s1(x)))
        return y


def pool(x: Tensor) -> Tensor:
    """Pool 2x2 by maximum; ceil mode keeps the last row and column of odd sizes."""
    return F.max_pool2d(x, 2, stride=2, ceil_mode=True)


def upsample_to(x: Tensor, target: Tensor) -> Tensor:
    """Resize bilinearly, with half-pixel centres, to the height and width of `target`."""
    return F.interpolate(x, size=target.shape[2:], mode="bilinear", align_corners=False)


class RSU(nn.Module):
    """RSU-L: a U of L-1 levels with pooling and a dilated bottom, added to its own input features."""

    def __init__(self, depth: int, inputs: int, width: Width) -> None:
        super().__init__()
        self.depth = depth
        self.rebnconvin = ConvBnRelu(inputs, width.out)
        self.rebnconv1 = ConvBnRelu(width.out, width.middle)
        for level in range(2, depth):
            self.add_module(f"rebnconv{level}", ConvBnRelu(width.middle, width.middle))
        self.add_module(f"rebnconv{depth}", ConvBnRelu(width.middle, width.middle, dilation=2))
        for level in range(depth - 1, 1, -1):
            self.add_module(f"rebnconv{level}d", ConvBnRelu(2 * width.middle, width.middle))
        self.rebnconv1d = ConvBnRelu(2 * width.middle, width.out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, width.out, H, W)."""
        entry: Tensor = self.rebnconvin(x)
        skips = [self.rebnconv1(entry)]
        for level in range(2, self.depth):
            skips.append(self.get_submodule(f"rebnconv{level}")(pool(skips[-1])))
        y: Tensor = self.get_submodule(f"rebnconv{self.depth}")(skips[-1])
        for level in range(self.depth - 1, 0, -1):
            skip = skips[level - 1]
            if level < self.depth - 1:  # the dilated bottom already has the size of the level above
                y = upsample_to(y, skip)
            y = self.get_submodule(f"rebnconv{level}d")(torch.cat((y, skip), 1))
        return y + entry


class RSU4F(nn.Module):
    """RSU-4F: the same U at one resolution, with dilation in place of pooling."""

    def __init__(self, inputs: int, width: Width) -> None:
        super().__init__()
        self.rebnconvin = ConvBnRelu(inputs, width.out)
        self.rebnconv1 = ConvBnRelu(width.out, width.middle)
        self.rebnconv2 = ConvBnRelu(width.middle, width.middle, dilation=2)
        self.rebnconv3 = ConvBnRelu(width.middle, width.middle, dilation=4)
        self.rebnconv4 = ConvBnRelu(width.middle, width.middle, dilation=8)
        self.rebnconv3d = ConvBnRelu(2 * width.middle, width.middle, dilation=4)
        self.rebnconv2d = ConvBnRelu(2 * width.middle, width.middle, dilation=2)
        self.rebnconv1d = ConvBnRelu(2 * width.middle, width.out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, width.out, H, W)."""
        entry: Tensor = self.rebnconvin(x)
        e1 = self.rebnconv1(entry)
        e2 = self.rebnconv2(e1)
        e3 = self.rebnconv3(e2)
        d3 = self.rebnconv3d(torch.cat((self.rebnconv4(e3), e3), 1))
        d2 = self.rebnconv2d(torch.cat((d3, e2), 1))
        d1: Tensor = self.rebnconv1d(torch.cat((d2, e1), 1))
        return d1 + entry


def _block(position: int, inputs: int, width: Width) -> nn.Module:
    """The block at a position: RSU-7, -6, -5, -4, -4F, -4F in the encoder; RSU-4F, -4, -5, -6, -7 in the decoder."""
    depth = (7, 6, 5, 4, 0, 0, 0, 4, 5, 6, 7)[position]
    return RSU(depth, inputs, width) if depth else RSU4F(inputs, width)


class U2Net(nn.Module):
    """U²-Net or U²-Net-small: seven saliency maps from any height and width.

    Args:
        variant: "u2net" (44.0 M parameters), "u2netp" (1.13 M), or a `Variant` with other widths.
        in_channels: channels of the input.
        out_channels: channels of each map; 1 for saliency, more for the published cloth segmentation.

    Raises:
        UserError: unknown variant name.
    """

    def __init__(self, variant: str | Variant = "u2net", in_channels: int = 3, out_channels: int = 1) -> None:
        super().__init__()
        if isinstance(variant, str):
            if variant not in VARIANTS:
                raise WrongValue(f"no U²-Net variant named {variant!r}", f"choose one of {', '.join(VARIANTS)}")
            variant = VARIANTS[variant]
        self.variant, self.in_channels, self.out_channels = variant, in_channels, out_channels
        widths = variant.widths
        inputs = in_channels
        for position, name in enumerate(ENCODERS):
            self.add_module(name, _block(position, inputs, widths[position]))
            inputs = widths[position].out
        for step, name in enumerate(DECODERS):
            inputs += widths[4 - step].out  # the concatenated skip of the encoder at the same level
            self.add_module(name, _block(6 + step, inputs, widths[6 + step]))
            inputs = widths[6 + step].out
        for level, channels in enumerate(self.side_inputs(), start=1):
            self.add_module(f"side{level}", nn.Conv2d(channels, out_channels, 3, padding=1))
        self.outconv = nn.Conv2d(6 * out_channels, out_channels, 1)

    def side_inputs(self) -> tuple[int, ...]:
        """The numbers of channels that side outputs 1 to 6 read, finest first."""
        widths = self.variant.widths
        return (*(w.out for w in reversed(widths[6:])), widths[5].out)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute seven maps after the sigmoid: the fused map d0, then side outputs 1 (finest) to 6.

        Args:
            x: (N, in_channels, H, W), normalised as `u2export.reference.image.Contract` says.

        Returns:
            Seven tensors (N, out_channels, H, W) with values in 0..1.
        """
        sides = [self.get_submodule(f"side{n}")(y) for n, y in enumerate(self.features(x), start=1)]
        sides = [sides[0], *(upsample_to(side, sides[0]) for side in sides[1:])]
        fused = self.outconv(torch.cat(sides, 1))
        return tuple(torch.sigmoid(y) for y in (fused, *sides))

    def features(self, x: Tensor) -> list[Tensor]:
        """Compute what side outputs 1 (finest) to 6 read, from an input as `forward` takes it."""
        encoded: list[Tensor] = [self.get_submodule("stage1")(x)]
        for name in ENCODERS[1:]:
            encoded.append(self.get_submodule(name)(pool(encoded[-1])))
        decoded = [encoded[-1]]
        for name, skip in zip(DECODERS, reversed(encoded[:-1]), strict=True):
            decoded.append(self.get_submodule(name)(torch.cat((upsample_to(decoded[-1], skip), skip), 1)))
        return decoded[::-1]


def conv_names(model: U2Net) -> list[str]:
    """Return the dotted names of the convolutions in execution order; published ONNX files have the same order."""
    order: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    with torch.no_grad():
        model(torch.zeros(1, model.in_channels, 32, 32, device=device))
    model.train(training)
    for hook in hooks:
        hook.remove()
    return order


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Variant, int, int]:
    """Recognise a checkpoint by the shapes of its tensors alone.

    Widths that are neither those of u2net nor those of u2netp are accepted where the checkpoint agrees with itself.

    Returns:
        The variant, the input channels and the output channels.

    Raises:
        UserError: tensors are missing, or a tensor has another shape than the best fitting variant expects. The error
            names the tensor and both shapes.
    """
    needed = [f"{s}.{c}.conv_s1.weight" for s in ENCODERS + DECODERS for c in ("rebnconvin", "rebnconv1")]
    needed += ["side1.weight", "outconv.weight"]
    lost = [name for name in needed if len(shapes.get(name, ())) != 4]
    if lost:
        raise UserError(
            f"not a U²-Net checkpoint: no tensor {lost[0]!r} of four dimensions ({len(lost)} of these are missing)",
            "give a .pth, .safetensors or .onnx of U²-Net with the published parameter names",
        )
    widths = tuple(
        Width(shapes[f"{s}.rebnconv1.conv_s1.weight"][0], shapes[f"{s}.rebnconvin.conv_s1.weight"][0])
        for s in ENCODERS + DECODERS
    )
    inputs, outputs = shapes["stage1.rebnconvin.conv_s1.weight"][1], shapes["side1.weight"][0]
    candidates = [*VARIANTS.values(), Variant("u2net-custom", widths)]
    differing = {v.name: _differences(v, inputs, outputs, shapes) for v in candidates}
    best = min(candidates, key=lambda v: len(differing[v.name]))  # among equals the first, which is a published variant
    if differing[best.name]:
        name, expected, found = differing[best.name][0]
        more = f" (and {n} more)" if (n := len(differing[best.name]) - 1) else ""
        raise UserError(
            f"{name}: {best.name} expects shape {expected}, the checkpoint has {found or 'no such tensor'}{more}",
            "the checkpoint is damaged or of another network; check its source and sha256",
        )
    return best, inputs, outputs


def _differences(
    variant: Variant, inputs: int, outputs: int, shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, tuple[int, ...], tuple[int, ...] | None]]:
    with torch.device("meta"):
        wanted = {name: tuple(t.shape) for name, t in U2Net(variant, inputs, outputs).state_dict().items()}
    wrong: list[tuple[str, tuple[int, ...], tuple[int, ...] | None]]
    wrong = [(n, s, shapes.get(n)) for n, s in wanted.items() if shapes.get(n) != s]
    return wrong + [(n, (), s) for n, s in shapes.items() if n not in wanted]
