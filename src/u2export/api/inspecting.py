"""Look at what is there: targets of this machine, the inside of a model file, weights, golden vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from u2export.api.exporting import Size, read_contract
from u2export.errors import Unavailable, WrongValue
from u2export.exporters import EXPORTERS
from u2export.exporters.artifact import Artifact
from u2export.exporters.exporter import Exporter
from u2export.exporters.inspection import inspect as _inspect
from u2export.exporters.model_file import ModelFile, Port
from u2export.exporters.open import read_artifact
from u2export.reference import weights as _weights

__all__ = [
    "Artifact", "ModelFile", "NamedWeights", "Port", "Target", "convert_weights", "golden", "inspect", "list_weights",
    "pull_weights", "targets", "weights_facts",
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One target runtime on this machine.

    Attributes:
        name, title: the word of the command line, and the name for people.
        precisions: those that the target can store, its default one first.
        export: why this machine cannot export to it; None where it can.
        run: why this machine cannot run its artifacts in the target's own runtime; None where it can.
        builds: whether an export is built before it runs, as an engine of TensorRT is.
        build: why this machine cannot build; None where it can, and where there is nothing to build.
        simulation: what computes the masks where the target's own runtime is missing; empty if nothing does.
        simulate: why this machine cannot simulate; None where it can, and where nothing simulates.
        when: when to take the target.
    """

    name: str
    title: str
    precisions: Sequence[str]
    export: Unavailable | None
    run: Unavailable | None
    builds: bool = False
    build: Unavailable | None = None
    simulation: str = ""
    simulate: Unavailable | None = None
    when: str = ""


@dataclass(frozen=True)
class NamedWeights:
    """Published weights that have a name.

    Attributes:
        name, about, licence: the name, what it stands for, and the licence.
        digest: sha256 of the file. sources: where it comes from.
        cached: the file on this machine; None where it is not here yet.
    """

    name: str
    about: str
    licence: str
    digest: str
    sources: tuple[str, ...]
    cached: Path | None


def targets() -> list[Target]:
    """Return what this machine can export, build, run and simulate; where it cannot, the reason and what to install.

    Example:
        >>> [target.name for target in targets()]
        ['onnx', 'ort', 'openvino', 'trt', 'coreml', 'litert', 'executorch']
    """
    return [_target(exporter) for exporter in EXPORTERS.values()]


def _target(exporter: Exporter) -> Target:
    return Target(
        name=exporter.name,
        title=exporter.title,
        precisions=tuple(exporter.precisions),
        export=exporter.missing(),
        run=exporter.missing_hardware(),
        builds=exporter.builds,
        build=exporter.missing_builder() if exporter.builds else None,
        simulation=exporter.simulation,
        simulate=exporter.missing() if exporter.simulation else None,
        when=exporter.when,
    )


def inspect(file: str | Path) -> tuple[ModelFile, Artifact | None]:
    """Return what is inside a model file, and its artifact where a record lies beside it.

    Args:
        file: a model file or folder, the .json record beside one, or a build log or layer table of TensorRT.

    Raises:
        UserError: the file cannot be read, is of no known kind, or is not the file that its record describes.
        Unavailable: a package to read it is missing.

    Example:
        >>> found, recorded = inspect(artifact.path)
        >>> len(found.layers), recorded.precision
        (119, 'fp32')
    """
    from u2export.exporters.trt.layer_table import is_table

    path = Path(file)
    described = path.suffix == ".json" and not is_table(path)
    recorded = read_artifact(path) if described or path.with_name(path.name + ".json").is_file() else None
    return _inspect(recorded.path if recorded else path), recorded


def golden(
    weights: str | Path = "u2netp",
    out: str | Path = "golden",
    *,
    size: Size | None = None,
    resize: str = "bilinear",
    contract: str = "",
) -> Path:
    """Write a picture, its network input and the reference's mask, for a port to compare itself with stage by stage.

    Args:
        weights, size, resize, contract: as for `export`.
        out: the folder to write.

    Returns:
        The folder.

    Raises:
        UserError: the weights or the size are not valid, or the folder cannot be written.

    Example:
        >>> golden("random-u2netp", folder / "golden", size=64).name
        'golden'
    """
    from u2export.reference.golden import picture, write
    from u2export.reference.source import Source

    source = Source.open(str(weights), read_contract(size, resize, contract, weights))
    d0 = source.predict(source.contract.tensor(picture(source.contract.channels)))[0]
    return write(source.contract, d0, source.stamp("fp32", {}), Path(out))


def list_weights() -> list[NamedWeights]:
    """Return the weights that have a name.

    Example:
        >>> "u2netp" in [weights.name for weights in list_weights()]
        True
    """

    found = []
    for known in _weights.WEIGHTS.values():
        file = _weights.cached(known.name)
        here = file if file.is_file() else None
        found.append(NamedWeights(known.name, known.about, known.licence, known.digest, tuple(known.sources), here))
    return found


def pull_weights(name: str) -> tuple[Path, str]:
    """Fetch named weights into the cache; return the file and its sha256.

    Raises:
        UserError: there are no weights of this name.
        Unavailable: no source could be reached.
    """
    path = _weights.pull(name)
    return path, _weights.file_digest(path)


def weights_facts(weights: str | Path) -> dict[str, Any]:
    """Return variant, channels, number of parameters, widths and sha256 of weights; plain data.

    Args:
        weights: as for `export`.

    Raises:
        UserError: the weights cannot be read, or are not those of a U²-Net.

    Example:
        >>> weights_facts("random-u2netp")["parameters"]
        1131181
    """
    identity, model = _weights.load(str(weights))
    return {
        "name": identity.label,
        "sha256": identity.sha256,
        "variant": model.variant.name,
        "in_channels": model.in_channels,
        "out_channels": model.out_channels,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tensors": len(model.state_dict()),
        "widths": [[x.middle, x.out] for x in model.variant.widths],
    }


def convert_weights(weights: str | Path, to: str | Path) -> Path:
    """Write weights under the published parameter names, so that the published network loads them with strict=True.

    Args:
        weights: as for `export`.
        to: a .pth or .safetensors file to write.

    Raises:
        UserError: the weights cannot be read, or the file has another suffix.

    Example:
        >>> convert_weights("random-u2netp", folder / "w.safetensors").name
        'w.safetensors'
    """
    target = Path(to)
    if target.suffix not in (".pth", ".safetensors"):
        raise WrongValue(
            f"cannot write weights as {target.suffix or target.name!r}", "name a .pth or .safetensors file"
        )
    _, model = _weights.load(str(weights))
    _weights.save(model, target)
    return target
