"""Synthetic scenes of salient objects with exact masks, for calibration where there are no photos.

The scenes have light, textures, shadows, blur and JPEG compression, because the activation ranges of a network depend
on all of these. Noise or flat drawings would give ranges that no photo has. Scenes are not for evaluation: their masks
are too easy.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from u2export.errors import WrongValue
from u2export.reference.image import Floats, Pixels

SMALLEST = 64
_FINE = 4  # shapes are drawn this many times larger and averaged, so edges are exact to 1/16 pixel
Points = list[tuple[float, float]]
T = TypeVar("T")


def scene(seed: int, height: int = 400, width: int = 400) -> tuple[Pixels, Pixels]:
    """Draw a photo-like scene (height, width, 3) and the mask (height, width) of its objects, 0..255 with soft edges.

    With one version of Pillow, the same seed and size always give the same scene: the only random numbers are the
    uniform doubles of PCG64, whose stream is fixed.

    Raises:
        UserError: the seed is below 0, or a side is below 64 pixels.
    """
    if seed < 0 or min(height, width) < SMALLEST:
        raise WrongValue(
            f"no scene for seed {seed}, size {height}x{width}", f"give seeds from 0, sides from {SMALLEST}"
        )
    dice = _Dice(seed)
    light = _unit(dice.between(-1, 1), dice.between(-1.2, -0.4), 1.0)
    hue = dice.between(0, 1)
    horizon = dice.between(0.35, 0.7)
    canvas = _background(dice, hue, horizon, height, width)
    canvas = _blurred(canvas, dice.between(0.002, 0.016) * min(height, width))
    mask = np.zeros((height, width), np.float32)
    for shape in _arrangement(dice, height, width):
        alpha = _drawn(shape, height, width)
        canvas *= 1 - dice.between(0.35, 0.65) * _shadow(alpha, shape, light)[..., None]
        canvas += alpha[..., None] * (_surface(dice, hue, alpha, light) - canvas)
        mask = np.maximum(mask, alpha)
    return _developed(dice, canvas), np.asarray((mask * 255).round(), np.uint8)


class _Dice:
    """Random numbers, all of them made from uniform doubles."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self._generator.random())

    def below(self, count: int) -> int:
        return int(self._generator.random() * count)

    def one(self, of: Sequence[T]) -> T:
        return of[self.below(len(of))]

    def grid(self, rows: int, columns: int) -> Floats:
        return np.asarray(self._generator.random((rows, columns)), np.float32)

    def bell(self, rows: int, columns: int) -> Floats:
        """Nearly normal numbers with mean 0 and deviation 1: sums of three uniform numbers."""
        return np.asarray((self._generator.random((3, rows, columns)).sum(0) - 1.5) * 2, np.float32)


def _unit(x: float, y: float, z: float) -> tuple[float, float, float]:
    size = math.sqrt(x * x + y * y + z * z)
    return x / size, y / size, z / size


def _colour(hue: float, saturation: float, value: float) -> Floats:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32) * 255


def _scaled(array: Floats, height: int, width: int, how: Image.Resampling = Image.Resampling.BICUBIC) -> Floats:
    return np.asarray(Image.fromarray(array).resize((width, height), how), np.float32)


def _smooth(array: Floats, radius: float) -> Floats:
    """Blur a float map by three box filters, which is nearly Gaussian; the blurs of Pillow take only 8 bit."""
    k = max(1, round(radius / 2))
    for axis in (0, 1) * 3:
        pad = [(k + 1, k) if a == axis else (0, 0) for a in (0, 1)]
        total = np.moveaxis(np.cumsum(np.pad(array, pad, "edge"), axis, dtype=np.float64), axis, 0)
        array = np.asarray(np.moveaxis(total[2 * k + 1 :] - total[: -2 * k - 1], 0, axis) / (2 * k + 1), np.float32)
    return array


def _blurred(canvas: NDArray[Any], radius: float) -> Floats:
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image, np.float32)


# --- textures: (height, width) maps in about 0..1 ----------------------------------------------------------------


def _clouds(dice: _Dice, height: int, width: int, cells: int = 3, octaves: int = 6, keep: float = 0.55) -> Floats:
    """Value noise of several octaves; each halves the cell and keeps the share `keep` of the amplitude."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        n = cells * 2**octave
        if n > min(height, width):
            break
        total += keep**octave * _scaled(dice.grid(n + 1, n + 1), height, width)
    low, high = total.min(), total.max()
    return np.asarray((total - low) / max(float(high - low), 1e-6), np.float32)


def _axes(height: int, width: int) -> tuple[Floats, Floats]:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return (y + 0.5) / height, (x + 0.5) / width


def _stripes(dice: _Dice, height: int, width: int) -> Floats:
    y, x = _axes(height, width)
    angle, count = dice.between(0, math.pi), dice.between(4, 16)
    wave = x * math.cos(angle) + y * math.sin(angle) + 0.08 * _clouds(dice, height, width, 2, 3)
    return np.asarray(0.5 + 0.5 * np.tanh(4 * np.sin(2 * math.pi * count * wave)), np.float32)


def _spots(dice: _Dice, height: int, width: int) -> Floats:
    field = _clouds(dice, height, width, 6 + dice.below(8), 2)
    return np.asarray(0.5 + 0.5 * np.tanh(12 * (field - dice.between(0.45, 0.65))), np.float32)


def _checks(dice: _Dice, height: int, width: int) -> Floats:
    """Tiles with joints."""
    y, x = _axes(height, width)
    angle, count = dice.between(-0.5, 0.5), dice.between(3, 9)
    u = count * (x * math.cos(angle) + y * math.sin(angle))
    v = count * (y * math.cos(angle) - x * math.sin(angle))
    return _tiled(dice, u, v)


def _tiled(dice: _Dice, u: NDArray[Any], v: NDArray[Any]) -> Floats:
    shades = dice.grid(64, 64)[v.astype(np.int32) % 64, u.astype(np.int32) % 64]
    joint = (np.minimum(u % 1, v % 1) > 0.06).astype(np.float32)
    return np.asarray((0.35 + 0.5 * shades) * joint + 0.1, np.float32)


TEXTURES: tuple[Callable[[_Dice, int, int], Floats], ...] = (_clouds, _stripes, _spots, _checks)


# --- background --------------------------------------------------------------------------------------------------


def _background(dice: _Dice, hue: float, horizon: float, height: int, width: int) -> Floats:
    kind = dice.one((_outdoors, _indoors, _backdrop, _foliage))
    return kind(dice, hue, horizon, height, width)


def _ramp(share: Floats, low: Floats, high: Floats) -> Floats:
    return np.asarray(low + share[..., None] * (high - low), np.float32)


def _outdoors(dice: _Dice, hue: float, horizon: float, height: int, width: int) -> Floats:
    """A sky with clouds above a textured ground that is coarser near the viewer."""
    y, _ = _axes(height, width)
    sky = _ramp((1 - y) * 0.7, _colour(0.55, 0.12, 0.95), _colour(0.58, dice.between(0.3, 0.7), 0.8))
    sky = sky + (_clouds(dice, height, width)[..., None] ** 2) * 60
    texture = _receding(dice, horizon, y, height, width)
    earth = dice.one((hue, dice.between(0.06, 0.13), dice.between(0.18, 0.33)))
    ground = _ramp(texture, _colour(earth, 0.55, 0.18), _colour(earth + 0.04, dice.between(0.2, 0.5), 0.62))
    line = horizon + 0.12 * (_clouds(dice, 8, width, 3, 2)[:1] - 0.5)
    share = 0.5 + 0.5 * np.tanh((y - line) * 60)
    return np.asarray(sky + share[..., None] * (ground - sky), np.float32)


def _receding(dice: _Dice, horizon: float, y: Floats, height: int, width: int) -> Floats:
    """A ground texture in perspective."""
    fine = _clouds(dice, height, width, 24, 4, 0.8)
    coarse = _clouds(dice, height, width, 5, 5, 0.7)
    near = ((y - horizon) / (1 - horizon)).clip(0, 1)
    return np.asarray(fine * (1 - near) + coarse * near, np.float32)


def _indoors(dice: _Dice, hue: float, horizon: float, height: int, width: int) -> Floats:
    """A wall and a tiled or wooden floor or table in perspective."""
    y, x = _axes(height, width)
    pattern = dice.one((_clouds, _stripes, _checks))(dice, height, width)
    low = _colour(hue, dice.between(0.05, 0.35), dice.between(0.45, 0.75))
    wall = _ramp(pattern * dice.between(0.1, 0.5), low, low * 0.6 + 20)
    depth = 1 / np.maximum(y - horizon + 0.08, 0.02)
    floor = _tiled(dice, (x - 0.5) * depth * dice.between(1, 3) + 40, depth * dice.between(0.8, 2.5))
    floor = 0.7 * floor + 0.3 * _clouds(dice, height, width, 8)
    wood = _ramp(floor, _colour(hue + 0.08, 0.5, 0.2), _colour(hue + 0.1, 0.35, 0.75))
    return np.where((y > horizon)[..., None], wood, wall).astype(np.float32)


def _backdrop(dice: _Dice, hue: float, horizon: float, height: int, width: int) -> Floats:
    """A studio sweep: a smooth gradient, brightest behind the object."""
    y, x = _axes(height, width)
    distance = np.hypot(x - dice.between(0.35, 0.65), (y - horizon) * 1.3)
    share = (1.1 - distance).clip(0, 1) + 0.06 * (_clouds(dice, height, width) - 0.5)
    saturation = dice.between(0, 0.4)
    return _ramp(share, _colour(hue, saturation, 0.35), _colour(hue, saturation * 0.6, dice.between(0.75, 1)))


def _foliage(dice: _Dice, hue: float, horizon: float, height: int, width: int) -> Floats:
    """Overlapping leaves and lights, far out of focus."""
    green = dice.between(0.18, 0.42)
    image = Image.fromarray(
        _ramp(_clouds(dice, height, width), _colour(green, 0.6, 0.1), _colour(green, 0.5, 0.45)).astype(np.uint8)
    )
    draw = ImageDraw.Draw(image)
    for _ in range(220):
        x, y, r = dice.between(0, width), dice.between(0, height), dice.between(0.012, 0.06) * min(height, width)
        colour = _colour(green + dice.between(-0.06, 0.06), dice.between(0.3, 0.8), dice.between(0.1, 0.75) ** 1.3)
        leaf = _blob(dice, x, y, r, r * dice.between(0.3, 1.0), 0.2)
        draw.polygon(leaf, fill=tuple(int(v) for v in colour))
    return _blurred(np.asarray(image, np.float32), dice.between(0.002, 0.02) * min(height, width))


# --- objects -----------------------------------------------------------------------------------------------------


def _arrangement(dice: _Dice, height: int, width: int) -> list[list[Points]]:
    """One to three objects, each a union of outlines; the largest is the last: near the middle and in front."""
    size = min(height, width)
    count = dice.one((1, 1, 1, 2, 2, 3))
    main = dice.between(0.16, 0.30) * size
    centre = width * dice.between(0.38, 0.62), height * dice.between(0.45, 0.62)
    made = []
    for i in range(count - 1):
        side = 1 if (i + dice.below(2)) % 2 else -1
        x, y = centre[0] + side * dice.between(1.0, 1.6) * main, centre[1] + dice.between(-0.2, 0.5) * main
        made.append(dice.one(SHAPES)(dice, x, y, main * dice.between(0.4, 0.7)))
    return [*made, dice.one(SHAPES)(dice, *centre, main)]


def _turned(points: Points, x: float, y: float, angle: float) -> Points:
    c, s = math.cos(angle), math.sin(angle)
    return [(x + c * px - s * py, y + s * px + c * py) for px, py in points]


def _blob(dice: _Dice, x: float, y: float, rx: float, ry: float, rough: float = 0.25) -> Points:
    """An ellipse with a wavy outline."""
    waves = [(dice.between(0, rough / k), dice.between(0, 2 * math.pi)) for k in range(2, 6)]
    ring = []
    for step in range(96):
        t = 2 * math.pi * step / 96
        r = 1 + sum(a * math.cos(k * t + phase) for k, (a, phase) in enumerate(waves, start=2))
        ring.append((rx * r * math.cos(t), ry * r * math.sin(t)))
    return _turned(ring, x, y, dice.between(-0.6, 0.6))


def _ellipse(dice: _Dice, x: float, y: float, r: float) -> list[Points]:
    return [_blob(dice, x, y, r, r * dice.between(0.6, 1), 0)]


def _lump(dice: _Dice, x: float, y: float, r: float) -> list[Points]:
    return [_blob(dice, x, y, r, r * dice.between(0.6, 1.2))]


def _star(dice: _Dice, x: float, y: float, r: float) -> list[Points]:
    tips, inner = 5 + dice.below(4), dice.between(0.45, 0.7)
    reach = [r * (inner if i % 2 else 1.1) for i in range(2 * tips)]
    ring = [(d * math.cos(math.pi * i / tips), d * math.sin(math.pi * i / tips)) for i, d in enumerate(reach)]
    return [_turned(ring, x, y, dice.between(0, 1))]


def _polygon(dice: _Dice, x: float, y: float, r: float) -> list[Points]:
    corners = 4 + dice.below(4)
    angles = [2 * math.pi * (i + dice.between(-0.25, 0.25)) / corners for i in range(corners)]
    return [_turned([(r * math.cos(t), r * 0.9 * math.sin(t)) for t in angles], x, y, dice.between(0, 1))]


def _animal(dice: _Dice, x: float, y: float, r: float) -> list[Points]:
    """A body on legs with a head, ears and a tail."""
    way = dice.one((-1, 1))
    body = _blob(dice, x, y, r, r * dice.between(0.5, 0.65), 0.08)
    hx, hy = x + way * r * 1.05, y - r * dice.between(0.4, 0.75)
    head = _blob(dice, hx, hy, r * 0.42, r * 0.36, 0.08)
    ear = [(hx - 0.25 * r, hy - 0.2 * r), (hx - way * 0.1 * r, hy - 0.7 * r), (hx + 0.25 * r, hy - 0.2 * r)]
    neck = [
        (x + way * 0.4 * r, y - 0.3 * r),
        (hx, hy - 0.25 * r),
        (hx, hy + 0.25 * r),
        (x + way * 0.85 * r, y + 0.2 * r),
    ]
    tail = [(x - way * 0.8 * r, y), (x - way * 1.6 * r, y - dice.between(0, 0.8) * r), (x - way * 0.8 * r, y + 0.2 * r)]
    legs = []
    for at in (-0.65, -0.35, 0.35, 0.65):
        lx, thick = x + at * r, r * dice.between(0.08, 0.12)
        legs.append([(lx - thick, y), (lx + thick, y), (lx + thick, y + 1.05 * r), (lx - thick, y + 1.05 * r)])
    return [body, neck, head, ear, tail, *legs]


def _vessel(dice: _Dice, x: float, y: float, r: float) -> list[Points]:
    """A bottle or vase: a profile turned about its axis."""
    profile = [(dice.between(0.35, 0.6) if i < 6 else dice.between(0.12, 0.3)) * r for i in range(9)]
    heights = [y + r * (1.1 - 2.2 * i / 32) for i in range(33)]
    widths = [float(np.interp(i / 4, range(9), profile)) for i in range(33)]
    smooth = np.convolve(np.pad(widths, 3, "edge"), np.ones(7) / 7, "valid")
    right = [(x + float(w), h) for w, h in zip(smooth, heights, strict=True)]
    left = [(x - float(w), h) for w, h in zip(smooth, heights, strict=True)]
    return [right + left[::-1]]


SHAPES: tuple[Callable[[_Dice, float, float, float], list[Points]], ...] = (
    _ellipse, _lump, _star, _polygon, _animal, _animal, _vessel, _vessel,
)  # fmt: skip


def _drawn(shape: list[Points], height: int, width: int) -> Floats:
    """Coverage 0..1 of every pixel by the union of outlines."""
    image = Image.new("L", (width * _FINE, height * _FINE))
    draw = ImageDraw.Draw(image)
    for outline in shape:
        draw.polygon([(x * _FINE, y * _FINE) for x, y in outline], fill=255)
    return np.asarray(np.asarray(image.reduce(_FINE), np.float32) / 255, np.float32)


def _shadow(alpha: Floats, shape: list[Points], light: tuple[float, float, float]) -> Floats:
    """The object's shadow on the ground: its outline laid flat from its lowest point, away from the light."""
    height, width = alpha.shape
    foot = max(y for outline in shape for _, y in outline)
    lean = -1.2 * light[0]
    flat = 0.3
    # Output pixel (x, y) takes the alpha at (x - lean * (foot - y) / flat, foot - (foot - y) / flat).
    laid = Image.fromarray(np.uint8(alpha * 255)).transform(
        (width, height), Image.Transform.AFFINE,
        (1, lean / flat, -lean * foot / flat, 0, 1 / flat, foot - foot / flat), Image.Resampling.BILINEAR,
    )  # fmt: skip
    soft = laid.filter(ImageFilter.GaussianBlur(0.015 * min(height, width)))
    return np.asarray(np.asarray(soft, np.float32) / 255, np.float32)


def _surface(dice: _Dice, hue: float, alpha: Floats, light: tuple[float, float, float]) -> Floats:
    """Colour of an object: two hues mixed by a texture, shaded as if the outline were inflated, with a highlight."""
    height, width = alpha.shape
    base = hue + dice.between(0.3, 0.7)
    value = dice.between(0.35, 1)
    first = _colour(base, dice.between(0.3, 0.95), value)
    second = _colour(base + dice.between(-0.15, 0.15), dice.between(0.1, 0.9), value * dice.between(0.3, 0.8))
    texture = dice.one(TEXTURES)(dice, height, width) * dice.between(0.2, 1)
    texture = 0.85 * texture + 0.15 * _clouds(dice, height, width, 16)
    shade, shine = _lit(alpha, light)
    gloss = dice.between(0, 150)
    return np.asarray(_ramp(texture, first, second) * shade[..., None] + gloss * shine[..., None], np.float32)


def _lit(alpha: Floats, light: tuple[float, float, float]) -> tuple[Floats, Floats]:
    """Diffuse and specular light on an inflated outline."""
    reach = math.sqrt(float(alpha.sum()))
    bulge = sum(_smooth(alpha, reach * part) for part in (0.1, 0.2, 0.35))
    dy, dx = np.gradient(np.asarray(bulge, np.float32) * reach * 0.35)
    norm = np.sqrt(dx * dx + dy * dy + 1)
    facing = (-dx * light[0] - dy * light[1] + light[2]) / norm
    shade = 0.3 + 0.85 * facing.clip(0, 1)
    return np.asarray(shade, np.float32), np.asarray(facing.clip(0, 1) ** 30, np.float32)


# --- camera ------------------------------------------------------------------------------------------------------


def _developed(dice: _Dice, canvas: Floats) -> Pixels:
    """Light fall-off, white balance, sensor noise, sharpness of a lens, JPEG."""
    height, width = canvas.shape[:2]
    y, x = _axes(height, width)
    falloff = 1 - dice.between(0, 0.6) * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    slope = 1 + dice.between(-0.25, 0.25) * (x - 0.5) + dice.between(-0.15, 0.15) * (y - 0.5)
    balance = np.array([dice.between(0.92, 1.08) for _ in range(3)], np.float32)
    exposure = dice.between(0.8, 1.15)
    exposed = canvas * (falloff * slope)[..., None] * balance * exposure
    grain = np.stack([dice.bell(height, width) for _ in range(3)], -1) * dice.between(0.5, 4)
    photo = _blurred(exposed + grain, dice.between(0.3, 0.7))
    file = io.BytesIO()
    Image.fromarray(photo.round().astype(np.uint8)).save(file, "JPEG", quality=70 + dice.below(26))
    return np.array(Image.open(file), np.uint8)
