"""Kits for phones: a folder with the artifact, inputs, their expected maps, and a program that times the artifact.

The program also keeps the masks, so that the import compares them with the expected ones. No kit was run on a phone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from u2export.benchmarks.imports.device_json import KIT_FORMAT
from u2export.benchmarks.imports.kit_readmes import FORMS, readme
from u2export.benchmarks.imports.timed_model import TimedModel
from u2export.benchmarks.measuring.plan import TIERS
from u2export.benchmarks.measuring.rows import planned_artifact
from u2export.benchmarks.web.page_files import kit_files
from u2export.benchmarks.web.ports import Ports, page_manifest, ports_of
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.litert.exporter import LiteRT
from u2export.exporters.open import read_artifact
from u2export.files import publish, read_json, staging, write_json
from u2export.reference.fidelity import ImageFidelity, compare
from u2export.reference.golden import picture
from u2export.reference.image import Floats, Pixels, mask_for
from u2export.reference.onnx_export import INPUT
from u2export.reference.photos import eight_bit, read_photo, write_mask
from u2export.reference.source import Source
from u2export.reference.verification import verification_photos

SCHEMA = 1
GOLDEN = "golden"
NOT_RUN = "not run on hardware"
# Digest of the file that the maker's program ran, as sha256sum prints it; beside the results.
RAN = "artifact.sha256"


@dataclass(frozen=True)
class Program:
    """What times the artifacts of one exporter on a phone.

    Attributes:
        exporter: the exporter whose artifacts the kit takes.
        make: the command that makes such an artifact.
        state: what is known about the program and its commands.
        template: the name of our own program in this folder, and its name in the kit; empty for a program of the
            runtime's maker. Such a program writes each mask to a file `<picture>.mask` beside its results.
        page: whether the program is a page for browsers, which keeps the maps inside its results.
    """

    exporter: str
    make: str
    state: str
    template: tuple[str, ...] = ()
    page: bool = False

    @property
    def own(self) -> bool:
        """Whether the program is ours, and not that of the runtime's maker."""
        return bool(self.template) or self.page


COREML = Program(
    "coreml", "u2export coreml", "Bench.swift was written from Apple's documentation and was not compiled",
    ("kit_coreml.swift", "Bench.swift"),
)  # fmt: skip
ORT = Program(
    "ort", "u2export ort --mobile",
    "bench.cc was compiled and run on Linux x86-64 with ONNX Runtime 1.32, not on a phone",
    ("kit_android.cc", "bench.cc"),
)  # fmt: skip
LITERT = Program(
    "litert", "u2export litert", "the commands were written from the sources of benchmark_model and were not run"
)
EXECUTORCH = Program(
    "executorch",
    "u2export executorch",
    "the commands were run on Linux x86-64 with executor_runner and ExecuTorch 1.5.1, not on a phone",
)
PAGE_STATE = "the page was run in Chromium on Linux, not on a phone"
WEB = tuple(Program(name, f"u2export {name}", PAGE_STATE, page=True) for name in ("onnx", "ort"))
# By the kind of phone, as on the command line; "web" is any browser.
PLATFORMS: Mapping[str, tuple[Program, ...]] = {
    "coreml": (COREML,), "android": (ORT, LITERT, EXECUTORCH), "web": WEB,
}  # fmt: skip


def write(artifact: Artifact, source: Source, phone: str, folder: Path) -> Path:
    """Write a kit to `<folder>/<artifact>-kit`, and return this folder. A failure leaves no half-written kit behind.

    Args:
        artifact: the artifact to run on the phone.
        source: the reference with the weights and the contract of the artifact.
        phone: the kind of phone, one of PLATFORMS.
        folder: where the kit goes.

    Raises:
        UserError: the artifact belongs to another target, the source has other weights, or it has several maps.
    """
    program = _program(artifact, phone)
    if source.weights.sha256 != artifact.weights.sha256:
        raise UserError(
            f"{artifact.name} was made from other weights than {source.weights.name}",
            "give the file of its weights",
            "weights",
        )
    if source.model.out_channels > 1:
        raise UserError(
            f"{artifact.name} has {source.model.out_channels} maps; the programs of a kit bring back one",
            "compare its classes with `u2export bench`, on this machine or over ssh",
        )
    with staging(folder) as scratch:
        made = scratch / f"{artifact.path.stem}-kit"
        for part in ("inputs", "expected", "results"):
            (made / part).mkdir(parents=True)
        _copy(artifact, made)
        ports = ports_of(artifact) if program.page else None
        names = [_case(name, pixels, artifact, source, made, ports) for name, pixels in _pictures(artifact)]
        digest = planned_artifact(artifact.name, artifact).row.digest
        if program.template:
            template, name = program.template
            code = (resources.files("u2export.benchmarks.imports") / template).read_text(encoding="utf-8")
            (made / name).write_text(code.replace("@ARTIFACT@", digest), encoding="utf-8")
        if program is ORT:
            _perf_test_data(artifact, made)
        manifest = _manifest(artifact, phone, program, digest, names)
        if ports:
            _copy_page(made)
            samples, seconds, rounds = TIERS["quick"]
            manifest |= {"format": KIT_FORMAT, "samples": samples, "seconds": seconds, "rounds": rounds}
            manifest |= page_manifest(artifact, ports)
        write_json(manifest, made / "kit.json")
        (made / "README.md").write_text(
            readme("web" if ports else program.exporter, _words(artifact, made, program)), encoding="utf-8"
        )
        publish(made, folder / made.name)
    return folder / made.name


def _program(artifact: Artifact, phone: str) -> Program:
    for program in PLATFORMS[phone]:
        if program.exporter == artifact.exporter:
            return program
    makes = " or ".join(f"`{program.make}`" for program in PLATFORMS[phone])
    raise UserError(f"{artifact.name} is no artifact for a kit for {phone}", f"make one with {makes}")


def _copy(artifact: Artifact, made: Path) -> None:
    for name in artifact.files:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.path.parent / name, made / name)
    # A kit is passed on, so that its record does not tell where files lie on this machine.
    anonymous = replace(artifact, weights=replace(artifact.weights, path=""))
    write_json(anonymous.to_json(), made / artifact.record.name)


def _pictures(artifact: Artifact) -> Iterator[tuple[str, Pixels]]:
    """Yield the golden picture, then the verification photos; these only for a model with 1 or 3 channels."""
    channels = artifact.contract.channels
    yield GOLDEN, picture(channels)
    if channels in (1, 3):
        yield from ((path.stem, eight_bit(read_photo(path, channels))) for path in verification_photos())


def _copy_page(made: Path) -> None:
    (made / "ort").mkdir()
    for name, path in kit_files().items():
        shutil.copyfile(path, made / name)


def _case(name: str, pixels: Pixels, artifact: Artifact, source: Source, made: Path, ports: Ports | None = None) -> str:
    """Write one input, and the map and the mask that the reference computes from it; return the name of the case."""
    x = artifact.contract.tensor(pixels)
    d0 = source.predict(x)[0, 0]
    if artifact.exporter == "coreml":
        from u2export.exporters.coreml.ports import picture as taken

        small = np.asarray(taken(x, artifact.contract)[0].transpose(1, 2, 0), np.uint8)
        Image.fromarray(small if small.shape[2] == 3 else small[..., 0]).save(made / "inputs" / f"{name}.png")
    else:
        fed = ports.feed(x) if ports else x
        fed = LiteRT(**artifact.options).fed(x, artifact.contract) if artifact.exporter == "litert" else fed
        fed.astype(fed.dtype.newbyteorder("<")).tofile(made / "inputs" / f"{name}.bin")
    np.save(made / "expected" / f"{name}.npy", d0)
    write_mask(mask_for(d0, *d0.shape), made / "expected" / f"{name}.png")
    return name


def _perf_test_data(artifact: Artifact, made: Path) -> None:
    """Write the golden input in the form that onnxruntime_perf_test and onnx_test_runner read."""
    import onnx
    from onnx import numpy_helper

    folder = made / "test_data_set_0"
    folder.mkdir()
    x = np.fromfile(made / "inputs" / f"{GOLDEN}.bin", "<f4").reshape(artifact.contract.shape)
    onnx.save_tensor(numpy_helper.from_array(x, "input"), folder / "input_0.pb")


def _manifest(artifact: Artifact, phone: str, program: Program, digest: str, names: Sequence[str]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "platform": phone,
        "artifact": artifact.name,
        "artifact_sha256": digest,
        "file_sha256": "" if program.own else artifact.files[artifact.path.name],
        "results": KIT_FORMAT if program.own else FORMS[program.exporter],
        "output": "stretched" if _stretched(artifact) else "d0",
        "shape": [artifact.contract.height, artifact.contract.width],
        "pictures": names,
        "weights": artifact.weights.name,
        "weights_sha256": artifact.weights.sha256,
        "notes": [NOT_RUN, program.state],
    }


def _stretched(artifact: Artifact) -> bool:
    """Whether the artifact itself stretches its map to 0..1."""
    if artifact.exporter == "coreml":
        return artifact.options.get("output") != "raw"
    return bool(artifact.exporter == "litert" and artifact.options.get("embed_preprocess"))


def _words(artifact: Artifact, made: Path, program: Program) -> dict[str, str]:
    """What the README says about this kit."""
    words = {
        "model": artifact.name,
        "stem": artifact.path.stem,
        "kit": made.name,
        "not_run": f"{NOT_RUN}; {program.state}",
    }
    if program is LITERT:
        shape = LiteRT(**artifact.options).shape(artifact.contract)
        words |= {"input": f"serving_default_{INPUT}", "shape": ",".join(map(str, shape))}
    return words


def judge(kit: Path, results: Path) -> Callable[[TimedModel], Mapping[str, ImageFidelity]]:
    """Return a function that compares the masks of a timed model with the expected maps of a kit.

    Args:
        kit: the folder of the kit.
        results: the file of results; the masks lie beside it.

    Raises:
        UserError: the folder holds no kit, or the kit is damaged. The returned function raises UserError if the
            results belong to another artifact, or if a mask is missing or damaged.
    """
    manifest = _read(kit)

    def fidelity(model: TimedModel) -> Mapping[str, ImageFidelity]:
        masks: Mapping[str, str | bytes]
        masks = _beside(results, manifest) if manifest.get("file_sha256") else model.maps or model.masks
        if not masks:
            return {}
        if not manifest.get("file_sha256") and model.artifact != manifest["artifact_sha256"]:
            raise UserError(f"{results} is of another artifact than {kit}", "give the kit that it was measured with")
        missing = [name for name in manifest["pictures"] if name not in masks]
        if missing:
            raise UserError(
                f"{results} names no mask of {missing[0]}", "run the program of the kit again, on all inputs"
            )
        return {name: _judged(kit, results, name, masks[name], manifest) for name in manifest["pictures"]}

    return fidelity


def _beside(results: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """The masks that a maker's program left beside its results; none where no mask was brought back.

    Raises:
        UserError: the program ran another file than that of the kit, or nothing says which file it ran.
    """
    names = [name for name in manifest["pictures"] if (results.parent / f"{name}.mask").is_file()]
    if not names:
        return {}
    ran = results.parent / RAN
    try:
        told = ran.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        raise UserError(f"no such file: {ran}", "run all commands of the kit's README; one of them writes it") from None
    if not told or told[0].lower() != manifest["file_sha256"]:
        raise UserError(f"{ran} is of another file than {manifest['artifact']}", "copy the kit's file to the phone")
    return {name: f"{name}.mask" for name in names}


def _read(kit: Path) -> dict[str, Any]:
    file = kit / "kit.json"
    data = read_json(file, "the folder that `u2export kit` wrote")
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise UserError(f"{file} is not of a kit with schema {SCHEMA}", "give the folder that `u2export kit` wrote")
    pictures, words = data.get("pictures"), [data.get(key) for key in ("artifact", "artifact_sha256", "output")]
    words.append(data.get("file_sha256", ""))
    if not isinstance(pictures, list) or not pictures or not all(isinstance(w, str) for w in (*words, *pictures)):
        raise UserError(f"{file} is damaged", "make the kit again")
    return {**data, "pictures": [Path(name).name for name in pictures]}


def artifact_of(kit: Path) -> Artifact:
    """Return the artifact in a kit.

    Raises:
        UserError: the folder holds no kit, or its artifact has changed.
    """
    return read_artifact(kit / Path(_read(kit)["artifact"]).name)


def _judged(kit: Path, results: Path, name: str, mask: str | bytes, manifest: Mapping[str, Any]) -> ImageFidelity:
    try:
        want: Floats = np.load(kit / "expected" / f"{name}.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{kit}: no expected mask of {name} ({error})", "make the kit again") from None
    got = _mask(results.parent / mask, want.shape) if isinstance(mask, str) else _map(mask, want.shape, results)
    if manifest["output"] == "stretched":
        # Back to the scale of d0, by the range of the expected map. Stretching this gives the returned mask again.
        got = want.min() + got * (want.max() - want.min())
    return compare(np.asarray(got, np.float32), want)


def _mask(path: Path, shape: tuple[int, ...]) -> Floats:
    wanted = int(np.prod(shape))
    try:
        size = path.stat().st_size
        if size != 4 * wanted:
            problem = f"{path} has {size} bytes; {wanted} float32 values take {4 * wanted}"
            raise UserError(problem, "copy the whole file, in binary mode")
        return np.asarray(np.fromfile(path, "<f4").reshape(shape), np.float32)
    except FileNotFoundError:
        raise UserError(f"no such mask: {path}", "copy the masks together with the results") from None


def _map(data: bytes, shape: tuple[int, ...], results: Path) -> Floats:
    """Return a map that stands inside the results.

    Raises:
        UserError: it has another size.
    """
    if len(data) != 4 * int(np.prod(shape)):
        raise UserError(f"{results} holds a map of {len(data)} bytes, not {4 * int(np.prod(shape))}", "measure again")
    return np.asarray(np.frombuffer(data, "<f4").reshape(shape), np.float32)
