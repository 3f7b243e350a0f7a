"""The README of each kit: the exact commands of the program that runs on the phone."""

from __future__ import annotations

from collections.abc import Mapping

# What `import --as` calls the results, by exporter.
FORMS = {"coreml": "coreml", "ort": "kit", "litert": "litert-benchmark", "executorch": "executorch", "web": "kit"}


def readme(exporter: str, words: Mapping[str, str]) -> str:
    """Return the README of a kit.

    Args:
        exporter: the exporter of the kit's artifact; "web" for a page.
        words: the names in the kit: `kit`, `model`, `stem`, `not_run`; for LiteRT also `input` and `shape`.
    """
    form = FORMS[exporter]
    file, named = ("result.json", "") if exporter in ("coreml", "ort", "web") else ("result.txt", ' --device "PHONE"')
    where = "the result" if exporter == "web" else "`results/`"
    return (READMES[exporter] + COMMON).format(**words, form=form, file=file, named=named, where=where)


COMMON = """
## Bring the numbers back

    u2export import results/{file} --as {form} --kit .{named} --out artifacts

This command compares every mask in {where} with the expected one, and it writes a file of results for
`u2export table`. A row without masks has a time but no fidelity, and its note says so.

- `inputs/` holds the golden picture and the verification photos, ready for the model.
- `expected/` holds the maps and the masks that the reference computed from these inputs.
- `kit.json` names the artifact and its weights.
- State of this kit: {not_run}.
"""

READMES = {
    "web": """# {kit}

This folder is a page that runs `{model}` in any browser: on a photo of the visitor, and as a measurement. The page
uploads nothing.

## Put it on a host

Any host of static files does: GitHub Pages, a web server, an S3 bucket. The page needs https, or localhost:

    python -m http.server --directory . 8000       # then open http://localhost:8000

Where the host cannot send the headers for threads, `sw.js` adds them in the browser.

## Measure

Open the page on the phone, choose what it runs in, press Measure, and save the result. The masks are inside the
result, so that this one file is all that comes back. Copy it to `results/result.json`.
""",
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
""",
    "ort": """# {kit}

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
""",
    "litert": """# {kit}

This kit times `{model}` with LiteRT's own program `benchmark_model` on an Android phone, and it keeps the masks.

## Get the program

LiteRT's page "Benchmark Interpreter API" (developers.google.com/edge/litert/models/measurement) links to the built
program for arm64 Android, `android_aarch64_benchmark_model`. Or build it with the Android NDK from the sources of
TensorFlow:

    bazel build -c opt --config=android_arm64 //tensorflow/lite/tools/benchmark:benchmark_model

## Run it

Prepare the phone: charge it above half, switch to aeroplane mode, keep the screen on at its lowest brightness, and let
the phone rest for five minutes. Then run:

    adb shell mkdir -p /data/local/tmp/u2export/results
    adb push android_aarch64_benchmark_model /data/local/tmp/u2export/benchmark_model
    adb push {model} inputs /data/local/tmp/u2export/
    adb shell 'cd /data/local/tmp/u2export && chmod +x benchmark_model && ./benchmark_model --graph={model} \\
        --num_threads=4 --warmup_runs=10 --num_runs=100 --max_secs=300' 2>&1 | tee results/result.txt
    adb shell 'cd /data/local/tmp/u2export && for x in inputs/*.bin; do n=$(basename $x .bin); \\
        ./benchmark_model --graph={model} --num_threads=4 --warmup_runs=0 --num_runs=1 --min_secs=0 \\
        --input_layer={input} --input_layer_shape={shape} \\
        --input_layer_value_files={input}:$x --output_filepath=results/$n.mask; done'
    adb shell 'cd /data/local/tmp/u2export && sha256sum {model} > results/artifact.sha256'
    adb pull /data/local/tmp/u2export/results/. results/

The first run of the program gives the times, on random numbers. The loop runs it once for each picture and keeps the
masks. The last line tells the import which file ran.
""",
    "executorch": """# {kit}

This kit times `{model}` with ExecuTorch's own program `executor_runner` on an Android phone, and it keeps the masks.

## Build the program

In a checkout of ExecuTorch (github.com/pytorch/executorch) of the version that `{stem}.pte.json` names, with its
submodules and the Android NDK:

    cmake -B cmake-out-android -DCMAKE_TOOLCHAIN_FILE=$NDK/build/cmake/android.toolchain.cmake \\
        -DANDROID_ABI=arm64-v8a -DANDROID_PLATFORM=android-26 -DCMAKE_BUILD_TYPE=Release \\
        -DEXECUTORCH_ENABLE_LOGGING=ON -DEXECUTORCH_BUILD_XNNPACK=ON -DEXECUTORCH_BUILD_KERNELS_QUANTIZED=ON \\
        -DEXECUTORCH_BUILD_EXTENSION_DATA_LOADER=ON -DEXECUTORCH_BUILD_EXTENSION_RUNNER_UTIL=ON \\
        -DEXECUTORCH_BUILD_EXECUTOR_RUNNER=ON .
    cmake --build cmake-out-android --target executor_runner

## Run it

Prepare the phone: charge it above half, switch to aeroplane mode, keep the screen on at its lowest brightness, and let
the phone rest for five minutes. Then run:

    adb shell mkdir -p /data/local/tmp/u2export/results
    adb push cmake-out-android/executor_runner {model} inputs /data/local/tmp/u2export/
    adb shell 'cd /data/local/tmp/u2export && chmod +x executor_runner && ./executor_runner --model_path={model} \\
        --method_name=forward --cpu_threads=4 --num_executions=100 --print_output=none' 2>&1 | tee results/result.txt
    adb shell 'cd /data/local/tmp/u2export && for x in inputs/*.bin; do n=$(basename $x .bin); \\
        ./executor_runner --model_path={model} --method_name=forward --cpu_threads=4 --inputs=$x \\
        --print_output=none --output_file=results/$n && mv results/$n-0.bin results/$n.mask; done'
    adb shell 'cd /data/local/tmp/u2export && sha256sum {model} > results/artifact.sha256'
    adb pull /data/local/tmp/u2export/results/. results/

The first run of the program gives the times, on ones. The loop runs it once for each picture and keeps the masks. The
last line tells the import which file ran. Some versions log to `adb logcat` instead of the terminal; then write
`adb logcat -d` into `results/result.txt`.
""",
}
