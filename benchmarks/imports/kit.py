"""Kits for phones: a folder with the artifact, inputs, their expected maps, and a program that times the artifact.

The program also keeps the masks, so that the import compares them with the expected ones. No kit was run on a phone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from u2export.benchmarks.imports.device_json import KIT_FORMAT
from u2export.benchmarks.imports.timed_model import TimedModel
from u2export.benchmarks.measuring.rows import planned_artifact
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact
from u2export.files import publish, read_json, staging, write_json
from u2export.reference.fidelity import ImageFidelity, compare
from u2export.reference.golden import picture
from u2export.reference.image import Floats, Pixels, mask_for
from u2export.reference.photos import eight_bit, read_photo, write_mask
from u2export.reference.source import Source
from u2export.reference.verification import verification_photos

SCHEMA = 1
GOLDEN = "golden"
NOT_RUN = "not run on hardware"
WRITTEN = {
    "coreml": "Bench.swift was written from Apple's documentation and was not compiled",
    "android": "bench.cc was compiled and run on Linux x86-64 with ONNX Runtime 1.32, not on a phone",
}


@dataclass(frozen=True)
class Platform:
    """One kind of phone.

    Attributes:
        name: the name on the command line.
        exporter: the exporter whose artifacts the kit takes.
        make: the command that makes such an artifact.
        program: the name of the program's template in this folder, and its name in the kit.
        form: what `import --as` calls the results.
    """

    name: str
    exporter: str
    make: str
    program: tuple[str, str]
    form: str


PLATFORMS: Mapping[str, Platform] = {
    p.name: p
    for p in (
        Platform("coreml", "coreml", "u2export coreml", ("kit_coreml.swift", "Bench.swift"), "coreml"),
        Platform("android", "ort", "u2export ort --mobile", ("kit_android.cc", "bench.cc"), "kit"),
    )
}


def write(artifact: Artifact, source: Source, platform: Platform, folder: Path) -> Path:
    """Write a kit to `<folder>/<artifact>-kit`, and return this folder. A failure leaves no half-written kit behind.

    Args:
        artifact: the artifact to run on the phone.
        source: the reference with the weights and the contract of the artifact.
        platform: the kind of phone.
        folder: where the kit goes.

    Raises:
        UserError: the artifact belongs to another target, the source has other weights, or it has several maps.
    """
    if artifact.exporter != platform.exporter:
        raise UserError(f"{artifact.name} is no artifact for a {platform.name} kit", f"make one with `{platform.make}`")
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
        names = [_case(name, pixels, artifact, source, platform, made) for name, pixels in _pictures(artifact)]
        digest = planned_artifact(artifact.name, artifact).row.digest
        template, program = platform.program
        code = (resources.files("u2export.benchmarks.imports") / template).read_text(encoding="utf-8")
        (made / program).write_text(code.replace("@ARTIFACT@", digest), encoding="utf-8")
        if platform.name == "android":
            _perf_test_data(artifact, made)
        write_json(_manifest(artifact, platform, digest, names), made / "kit.json")
        (made / "README.md").write_text(
            READMES[platform.name].format(**_words(artifact, made, platform.name)), encoding="utf-8"
        )
        publish(made, folder / made.name)
    return folder / made.name


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


def _case(name: str, pixels: Pixels, artifact: Artifact, source: Source, platform: Platform, made: Path) -> str:
    """Write one input, and the map and the mask that the reference computes from it; return the name of the case."""
    x = artifact.contract.tensor(pixels)
    d0 = source.predict(x)[0, 0]
    if platform.name == "coreml":
        from u2export.exporters.coreml.ports import picture as taken

        small = np.asarray(taken(x, artifact.contract)[0].transpose(1, 2, 0), np.uint8)
        Image.fromarray(small if small.shape[2] == 3 else small[..., 0]).save(made / "inputs" / f"{name}.png")
    else:
        x.astype("<f4").tofile(made / "inputs" / f"{name}.bin")
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


def _manifest(artifact: Artifact, platform: Platform, digest: str, names: list[str]) -> dict[str, Any]:
    stretched = platform.name == "coreml" and artifact.options.get("output") != "raw"
    return {
        "schema": SCHEMA,
        "platform": platform.name,
        "artifact": artifact.name,
        "artifact_sha256": digest,
        "results": KIT_FORMAT,
        "output": "stretched" if stretched else "d0",
        "shape": [artifact.contract.height, artifact.contract.width],
        "pictures": names,
        "weights": artifact.weights.name,
        "weights_sha256": artifact.weights.sha256,
        "notes": [NOT_RUN, WRITTEN[platform.name]],
    }


def _words(artifact: Artifact, made: Path, platform: str) -> dict[str, str]:
    return {
        "model": artifact.name,
        "stem": artifact.path.stem,
        "kit": made.name,
        "not_run": f"{NOT_RUN}; {WRITTEN[platform]}",
    }


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
        if model.artifact != manifest["artifact_sha256"]:
            raise UserError(f"{results} is of another artifact than {kit}", "give the kit that it was measured with")
        missing = [name for name in manifest["pictures"] if name not in model.masks]
        if missing:
            raise UserError(
                f"{results} names no mask of {missing[0]}", "run the program of the kit again, on all inputs"
            )
        return {name: _judged(kit, results, name, model.masks[name], manifest) for name in manifest["pictures"]}

    return fidelity


def _read(kit: Path) -> dict[str, Any]:
    file = kit / "kit.json"
    data = read_json(file, "the folder that `u2export kit` wrote")
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise UserError(f"{file} is not of a kit with schema {SCHEMA}", "give the folder that `u2export kit` wrote")
    pictures, words = data.get("pictures"), [data.get(key) for key in ("artifact", "artifact_sha256", "output")]
    if not isinstance(pictures, list) or not pictures or not all(isinstance(w, str) for w in (*words, *pictures)):
        raise UserError(f"{file} is damaged", "make the kit again")
    return {**data, "pictures": [Path(name).name for name in pictures]}


def artifact_of(kit: Path) -> Artifact:
    """Return the artifact in a kit.

    Raises:
        UserError: the folder holds no kit, or its artifact has changed.
    """
    return read_artifact(kit / Path(_read(kit)["artifact"]).name)


def _judged(kit: Path, results: Path, name: str, mask: str, manifest: Mapping[str, Any]) -> ImageFidelity:
    try:
        want: Floats = np.load(kit / "expected" / f"{name}.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{kit}: no expected mask of {name} ({error})", "make the kit again") from None
    got = _mask(results.parent / mask, want.shape)
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


_COMMON = """
## Bring the numbers back

    u2export import results/result.json --as {form} --kit . --out artifacts

This command compares every mask in `results/` with the expected one, and it writes a file of results for
`u2export table`. A row without masks has a time but no fidelity, and its note says so.

- `inputs/` holds the golden picture and the verification photos, ready for the model.
- `expected/` holds the maps and the masks that the reference computed from these inputs.
- `kit.json` names the artifact and its weights.
- State of this kit: {{not_run}}.
"""

READMES = {
    "coreml": """# {kit}

This kit times `{model}` with Core ML's own API, and it keeps the masks.

## On a Mac

    swiftc -O -parse-as-library Bench.swift -o bench
    ./bench {model} inputs results cpuAndNeuralEngine

The last word chooses the compute units: `all`, `cpuOnly`, `cpuAndGPU` or `cpuAndNeuralEngine`. Each choice gives a
row of its own, so give each of them a results folder of its own.

## On an iPhone

1. Make an iOS app in Xcode. Add `Bench.swift`, `{model}` and the folder `inputs` (as a folder reference).
2. Call this in the action of a button, on a background queue:
   `try U2ExportBench.run(model: Bundle.main.url(forResource: "{stem}", withExtension: "mlmodelc")!, inputs:
   Bundle.main.url(forResource: "inputs", withExtension: nil)!, results: .documentsDirectory, units: .all)`
3. Prepare the phone: charge it above half, switch the low-power mode off, and let it rest for five minutes. Then run
   the app in the Release configuration, without the debugger.
4. Choose Window > Devices and Simulators > the app > Download Container. Copy `result.json` and the `.mask` files into
   `results/` of this folder.

Xcode's performance report of the package shows on which unit each operation runs. Apple documents no file form of this
report, so u2export cannot read it.
""" + _COMMON.format(form="coreml"),
    "android": """# {kit}

This kit times `{model}` with ONNX Runtime on an Android phone, and it keeps the masks.

## Build the program

Download `onnxruntime-android-VERSION.aar` from Maven Central (com.microsoft.onnxruntime:onnxruntime-android). It is a
zip file with `headers/` and `jni/arm64-v8a/libonnxruntime.so`. Then build with the Android NDK:

    unzip onnxruntime-android-VERSION.aar -d ort
    $NDK/toolchains/llvm/prebuilt/linux-x86_64/bin/aarch64-linux-android24-clang++ -O2 -std=c++17 -static-libstdc++ \\
        bench.cc -Iort/headers -Lort/jni/arm64-v8a -lonnxruntime -o bench

## Run it

Prepare the phone: charge it above half, switch to aeroplane mode, keep the screen on at its lowest brightness, and let
the phone rest for five minutes. Then run:

    adb shell mkdir -p /data/local/tmp/u2export/results
    adb push bench ort/jni/arm64-v8a/libonnxruntime.so {model} inputs /data/local/tmp/u2export/
    adb shell 'cd /data/local/tmp/u2export && chmod +x bench && LD_LIBRARY_PATH=. THREADS=4 ./bench {model} results \\
        "$(getprop ro.product.model)" inputs/*.bin'
    adb pull /data/local/tmp/u2export/results/. results/

## Or with ONNX Runtime's own tool

Build `onnxruntime_perf_test` with ONNX Runtime's option `--android`. It reads the golden input in `test_data_set_0/`:

    adb push onnxruntime_perf_test {model} test_data_set_0 /data/local/tmp/u2export/
    adb shell 'cd /data/local/tmp/u2export && ./onnxruntime_perf_test -m duration -t 10 -x 4 -s {model} perf.csv' | \\
        tee results/perf.log
    adb pull /data/local/tmp/u2export/perf.csv results/
    u2export import results/perf.csv --as onnxruntime-perf --log results/perf.log --artifact {model} --device "PHONE"

This tool keeps no masks, so its row has no fidelity.
""" + _COMMON.format(form="kit"),
}  # fmt: skip
