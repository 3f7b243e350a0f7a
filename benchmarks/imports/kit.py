"""A folder to take to a phone: the artifact, inputs, the masks they must give, and a program that times and keeps them.

What comes back is judged by the masks, not only by its speed. Nothing in a kit has been run on a phone here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
from u2export.reference.image import Floats, Pixels, mask_for, read_photo, write_mask
from u2export.reference.source import Source
from u2export.reference.verification import verification_photos

SCHEMA = 1
GOLDEN = "golden"
NOT_RUN = "not run on hardware"
WRITTEN = {
    "coreml": "Bench.swift was written from Apple's documentation and has not been compiled",
    "android": "bench.cc has been compiled and run on Linux x86-64 with ONNX Runtime 1.32, not on a phone",
}


@dataclass(frozen=True)
class Platform:
    """One kind of phone.

    Attributes:
        name: the command's word. exporter: whose artifacts it takes. make: the command that makes one.
        program: the template in this folder, and its name in the kit. form: of the results, for `import --as`.
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
    """Write a kit to `<folder>/<artifact>-kit`, whole or not at all.

    Args:
        artifact: what to run. source: the reference of its weights, under its contract.

    Raises:
        UserError: the artifact is of another target, or the source holds other weights.
    """
    if artifact.exporter != platform.exporter:
        raise UserError(f"{artifact.name} is no artifact for a {platform.name} kit", f"make one with {platform.make}")
    if source.weights.sha256 != artifact.weights.sha256:
        raise UserError(f"{artifact.name} was made of other weights than {source.weights.name}", "give --weights FILE")
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
    write_json(artifact.to_json(), made / artifact.record.name)


def _pictures(artifact: Artifact) -> Iterator[tuple[str, Pixels]]:
    """The golden picture, then the verification photos (of models that take photos)."""
    channels = artifact.contract.channels
    yield GOLDEN, picture(channels)
    if channels in (1, 3):
        yield from ((path.stem, read_photo(path, channels)) for path in verification_photos())


def _case(name: str, pixels: Pixels, artifact: Artifact, source: Source, platform: Platform, made: Path) -> str:
    """One input and the reference's map and mask of it."""
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
    """The golden input as onnxruntime_perf_test and onnx_test_runner find it."""
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
    """What compares the masks named in `results` with those the kit expects.

    Raises:
        UserError: no kit there, or a damaged one.
    """
    manifest = _read(kit)

    def fidelity(found: TimedModel) -> Mapping[str, ImageFidelity]:
        if found.artifact != manifest["artifact_sha256"]:
            raise UserError(f"{results} is not of the artifact in {kit}", "give the kit it was measured with")
        missing = [name for name in manifest["pictures"] if name not in found.masks]
        if missing:
            raise UserError(f"{results} names no mask of {missing[0]}", "run the kit's program again, on all inputs")
        return {name: _judged(kit, results, name, found.masks[name], manifest) for name in manifest["pictures"]}

    return fidelity


def _read(kit: Path) -> dict[str, Any]:
    file = kit / "kit.json"
    data = read_json(file, "the folder that u2export kit wrote")
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise UserError(f"{file} is not a kit's of schema {SCHEMA}", "give the folder that u2export kit wrote")
    pictures, words = data.get("pictures"), [data.get(key) for key in ("artifact", "artifact_sha256", "output")]
    if not isinstance(pictures, list) or not pictures or not all(isinstance(w, str) for w in (*words, *pictures)):
        raise UserError(f"{file} is damaged", "make the kit again")
    return {**data, "pictures": [Path(name).name for name in pictures]}


def artifact_of(kit: Path) -> Artifact:
    """The artifact in a kit.

    Raises:
        UserError: no kit there, or its artifact has changed.
    """
    return read_artifact(kit / Path(_read(kit)["artifact"]).name)


def _judged(kit: Path, results: Path, name: str, mask: str, manifest: Mapping[str, Any]) -> ImageFidelity:
    try:
        want: Floats = np.load(kit / "expected" / f"{name}.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{kit}: no expected mask of {name} ({error})", "make the kit again") from None
    got = _mask(results.parent / mask, want.shape)
    if manifest["output"] == "stretched":
        # Back to the scale of d0 by the reference's own range: stretching it again gives the mask that came back.
        got = want.min() + got * (want.max() - want.min())
    return compare(np.asarray(got, np.float32), want)


def _mask(path: Path, shape: tuple[int, ...]) -> Floats:
    wanted = int(np.prod(shape))
    try:
        size = path.stat().st_size
        if size != 4 * wanted:
            expected = f"not {4 * wanted} of {wanted} float32 values"
            raise UserError(f"{path} has {size} bytes, {expected}", "copy the results whole, in binary mode")
        return np.asarray(np.fromfile(path, "<f4").reshape(shape), np.float32)
    except FileNotFoundError:
        raise UserError(f"no such mask: {path}", "copy the masks that lie beside the results, too") from None


_COMMON = """
## Bring the numbers back

    u2export import results/result.json --as {form} --kit . --out artifacts

compares every mask in `results/` with the one in `expected/`, and writes a results file for `u2export table`. A row
without masks has a time and no fidelity, and says so.

- `inputs/`: the golden picture and the verification photos, ready for the model; `expected/`: the reference's maps
- `kit.json`: which artifact, of which weights
- {{not_run}}
"""

READMES = {
    "coreml": """# {kit}

Times `{model}` with Core ML's own API and keeps its masks.

## On a Mac

    swiftc -O -parse-as-library Bench.swift -o bench
    ./bench {model} inputs results cpuAndNeuralEngine

The last word is one of all, cpuOnly, cpuAndGPU, cpuAndNeuralEngine; each is a row of its own (keep the results apart).

## On an iPhone

1. In Xcode, make an iOS app; add `Bench.swift`, `{model}` and the folder `inputs` (as a folder reference).
2. In a button's action, on a background queue:
   `try U2ExportBench.run(model: Bundle.main.url(forResource: "{stem}", withExtension: "mlmodelc")!, inputs:
   Bundle.main.url(forResource: "inputs", withExtension: nil)!, results: .documentsDirectory, units: .all)`
3. Run the Release configuration, without the debugger, battery above half, low-power mode off, five minutes of rest.
4. Window > Devices and Simulators > the app > Download Container; copy `result.json` and the `.mask` files here, into
   `results/`.

For the placement of operations, see Xcode's performance report of the package; it has no documented file form.
""" + _COMMON.format(form="coreml"),
    "android": """# {kit}

Times `{model}` with ONNX Runtime on an Android phone and keeps its masks.

## Build the program

`onnxruntime-android-VERSION.aar` is on Maven Central (com.microsoft.onnxruntime:onnxruntime-android); it is a zip with
`headers/` and `jni/arm64-v8a/libonnxruntime.so`. With the Android NDK:

    unzip onnxruntime-android-VERSION.aar -d ort
    $NDK/toolchains/llvm/prebuilt/linux-x86_64/bin/aarch64-linux-android24-clang++ -O2 -std=c++17 -static-libstdc++ \\
        bench.cc -Iort/headers -Lort/jni/arm64-v8a -lonnxruntime -o bench

## Run it

    adb shell mkdir -p /data/local/tmp/u2export/results
    adb push bench ort/jni/arm64-v8a/libonnxruntime.so {model} inputs /data/local/tmp/u2export/
    adb shell 'cd /data/local/tmp/u2export && chmod +x bench && LD_LIBRARY_PATH=. THREADS=4 ./bench {model} results \\
        "$(getprop ro.product.model)" inputs/*.bin'
    adb pull /data/local/tmp/u2export/results/. results/

Charge above half, aeroplane mode, screen on at lowest brightness, five minutes of rest before.

## Or with ONNX Runtime's own tool

`onnxruntime_perf_test`, built with ONNX Runtime's `--android`, takes the golden input from `test_data_set_0/`:

    adb push onnxruntime_perf_test {model} test_data_set_0 /data/local/tmp/u2export/
    adb shell 'cd /data/local/tmp/u2export && ./onnxruntime_perf_test -m duration -t 10 -x 4 -s {model} perf.csv' | \\
        tee results/perf.log
    adb pull /data/local/tmp/u2export/perf.csv results/
    u2export import results/perf.csv --as onnxruntime-perf --log results/perf.log --artifact {model} --device "PHONE"

It keeps no masks, so such a row has no fidelity.
""" + _COMMON.format(form="kit"),
}  # fmt: skip
