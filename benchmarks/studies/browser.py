"""Does the page of `bench --device web` add time to the times that it measures? A bare loop in the same browser tells.

Both sides run in one headless Chromium: the page of the bench, asked as a bench asks it, and a page of a few lines that
calls onnxruntime-web in a loop, without a Web Worker, a server or a protocol. In every round both sides open the
artifact anew. They then take short turns, in random order within each pair, so that a slow spell falls on both sides.
The result is the ratio page / bare loop over the rounds with its interval, by the estimator of speed-ups.
"""

from __future__ import annotations

import functools
import http.server
import random
import shutil
import tempfile
import threading
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter_ns, sleep
from typing import Any

from u2export.benchmarks.device import this_device
from u2export.benchmarks.sensors import state
from u2export.benchmarks.statistics import time_ratio
from u2export.benchmarks.studies.overhead import LEAST_ROUNDS, LIMIT, verdict
from u2export.benchmarks.studies.study import RESULTS, Pages, Study, progress
from u2export.benchmarks.tables.markdown import table
from u2export.benchmarks.web.machine import WebMachine
from u2export.benchmarks.web.ports import ports_of
from u2export.benchmarks.web.runtime_files import VERSION, runtime_files
from u2export.benchmarks.web.server import HEADERS
from u2export.errors import Unavailable, UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact
from u2export.reference.photos import find_photos, read_input

# Seconds: a pause between two turns, and the limit of the warm-up of the page's side.
PAUSE, WARMUP = 0.05, 5
ISOLATED = {name: HEADERS[name] for name in HEADERS if name.startswith("Cross-Origin")}
KINDS = {"": "application/octet-stream", ".html": "text/html", ".mjs": "text/javascript"}
BARE = """<!doctype html>
<meta charset="utf-8">
<script type="module">
import * as ort from "./ort.wasm.min.mjs";

const bytes = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());

let session, fed, output;

const run = async () => {
  const start = performance.now();
  const results = await session.run(fed, [output]);
  const time = performance.now() - start;
  results[output].dispose();
  return time;
};

window.open_network = async ({ file, entry, output: name, type, dims, warmups }) => {
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = (await bytes("ort-wasm-simd-threaded.wasm")).buffer;
  session = await ort.InferenceSession.create(await bytes(file), { executionProviders: ["wasm"] });
  const kinds = { float32: Float32Array, uint8: Uint8Array };
  fed = { [entry]: new ort.Tensor(type, new kinds[type]((await bytes("input.bin")).buffer), dims) };
  output = name;
  for (let i = 0; i < warmups; i += 1) await run();
};

window.turn = async (samples) => {
  await run(); // not counted: the other side has emptied the caches
  const times = [];
  while (times.length < samples) times.push(await run());
  return times;
};
</script>
"""


@dataclass(frozen=True)
class Browser:
    """A headless Chromium with both pages.

    Attributes:
        machine: the page of the bench.
        bare: opens an artifact with a photo in a new page of the bare loop, and warms it up as often as it is told. The
            context gives a function that returns the times in ms of a turn of so many samples.
    """

    machine: WebMachine
    bare: Callable[[Artifact, Path, int], AbstractContextManager[Callable[[int], list[float]]]]


@contextmanager
def browser() -> Iterator[Browser]:
    """Yield a headless Chromium that has opened the page of a bench.

    Raises:
        Unavailable: Playwright or Chromium is not installed.
    """
    found = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise Unavailable("Playwright is not installed", "pip install playwright") from None
    if not found:
        raise Unavailable("Chromium is not installed", "install chromium, on Debian: apt install chromium")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder, _served(Path(folder)) as address:
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])

        def opened(line: str) -> None:
            if "http://" in line:
                page = running.new_page()
                page.goto(line.strip().replace(line.split("/")[2].split(":")[0], "localhost"))
                page.fill("#model", "Headless Chromium")
                page.click("#go")

        @contextmanager
        def bare(artifact: Artifact, photo: Path, warmups: int) -> Iterator[Callable[[int], list[float]]]:
            asked = _bare_files(artifact, photo, Path(folder))
            page = running.new_page()
            page.goto(f"{address}/bare.html")
            page.wait_for_function("() => Boolean(window.turn)")
            page.evaluate("window.open_network", {**asked, "warmups": warmups})
            yield lambda samples: [float(ms) for ms in page.evaluate("window.turn", samples)]
            page.close()

        with WebMachine(opened, port=0) as machine:
            yield Browser(machine, bare)
        running.close()


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """Serve a folder to this machine, isolated as the page of the bench is; yield its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = KINDS

        def end_headers(self) -> None:
            for name, value in ISOLATED.items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    (folder / "bare.html").write_text(BARE, encoding="utf-8")
    for name, path in runtime_files().items():
        shutil.copyfile(path, folder / name)
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


def _bare_files(artifact: Artifact, photo: Path, folder: Path) -> dict[str, Any]:
    """Write the network and its input for the bare loop, and return what it must know."""
    ports = ports_of(artifact)
    fed = ports.feed(read_input(artifact.contract, photo))
    (folder / "input.bin").write_bytes(fed.astype(fed.dtype.newbyteorder("<")).tobytes())
    shutil.copyfile(artifact.path, folder / "network.onnx")
    asked = {"file": "network.onnx", "entry": ports.input, "output": ports.output}
    return {**asked, "type": fed.dtype.name, "dims": list(fed.shape)}


def in_turns(found: Browser, artifact: Artifact, photo: Path, pairs: int, samples: int) -> dict[str, list[float]]:
    """Return the median times in ms of the turns of one round, in pairs, by side."""
    times: dict[str, list[float]] = {"page": [], "bare loop": []}
    with found.machine.start_worker(Path("unused"), 120) as worker:
        worker.ask("open", artifact=str(artifact.path), mode=f"{artifact.precision} wasm")
        warm = worker.ask("warm", WARMUP, photo=str(photo), limit=WARMUP)
        with found.bare(artifact, photo, 1 + len(warm["warmup_ns"])) as bare:
            for number in range(pairs):
                for side in random.Random(f"{artifact.name}-{number}").sample(list(times), 2):
                    sleep(PAUSE)
                    ns = worker.ask("time", samples=samples, seconds=0)["ns"] if side == "page" else ()
                    times[side].append(median(t / 1e6 for t in ns) if ns else median(bare(samples)))
    return times


def compared(found: Browser, artifact: Artifact, photo: Path, given: Namespace) -> dict[str, Any]:
    """Return the times of all rounds and both sides, and their ratio with its interval.

    The ratio of a round is the median of the ratios of its pairs.
    """
    found.machine.send_artifact(artifact)
    rounds = []
    for number in range(given.rounds):
        rounds.append(in_turns(found, artifact, photo, given.pairs, given.samples))
        shown = ", ".join(f"{side} {median(times):.1f} ms" for side, times in rounds[-1].items())
        progress(f"{artifact.name}: round {number + 1} of {given.rounds}: {shown}")
    ratios = [median(a / b for a, b in zip(r["page"], r["bare loop"], strict=True)) for r in rounds]
    ratio = time_ratio(ratios, [1.0] * len(ratios))
    assert ratio
    return {
        "artifact": artifact.name, "page_ms": [r["page"] for r in rounds], "bare_ms": [r["bare loop"] for r in rounds],
        "ratios": ratios, "ratio": ratio.value, "low": ratio.low, "high": ratio.high,
    }  # fmt: skip


def page(result: Mapping[str, Any]) -> str:
    """Return the Markdown page: the result, and what a reader needs to judge and to repeat it."""
    cells = [
        (
            p["artifact"], f"{_middle(p['page_ms']):.1f}", f"{_middle(p['bare_ms']):.1f}", f"{p['ratio']:.4f}",
            f"{p['low']:.4f}–{p['high']:.4f}", verdict(p),
        )
        for p in result["pairs"]
    ]  # fmt: skip
    titles = ("artifact", "page ms", "bare loop ms", "ratio", "95 % interval", "within 2 %")
    return f"""# What the page of a bench adds to the times in a browser

{table(titles, cells, "lrrrrl")}

Device: {result["device_label"]}.
{result["environment"]["browser"]}, headless; onnxruntime-web {VERSION}, WebAssembly with one thread.

{result["rounds"]} rounds. In each round both sides open the artifact anew in the same browser, and take
{result["pairs_a_round"]} pairs of turns of {result["samples"]} samples, in random order within a pair. ms: median over
all turns. ratio: page / bare loop; that of a round is the median over its pairs, and the estimator over the rounds is
that of speed-ups (Hodges and Lehmann, with the exact interval of the signed-rank test). No phone took part.

Again:
```sh
{result["command"]}
```
"""


def _middle(rounds: Sequence[Sequence[float]]) -> float:
    return median(ms for times in rounds for ms in times)


def options(parser: ArgumentParser) -> None:
    """Add the options of this study."""
    parser.add_argument("artifacts", nargs="+", type=Path, metavar="ARTIFACT", help="ONNX artifacts")
    parser.add_argument("--images", type=Path, default=Path("reference/photos"), help="a photo, or a folder with one")
    parser.add_argument("--rounds", type=int, default=10, help="number of rounds, 6 or more; %(default)s")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of turns in each round; %(default)s")
    parser.add_argument("--samples", type=int, default=3, help="samples of each turn; %(default)s")


def run(given: Namespace, pages: Pages) -> int:
    """Compare the page with the bare loop, and write both pages; 1 if the page adds more than the limit.

    Raises:
        UserError: there are too few rounds for an interval, or an artifact is not of one ONNX file.
    """
    if given.rounds < LEAST_ROUNDS:
        raise UserError(
            f"{given.rounds} rounds are too few for a 95 % interval", f"give --rounds {LEAST_ROUNDS} or more"
        )
    opened = [read_artifact(path) for path in given.artifacts]
    photo, before, started = find_photos([given.images])[0], state(), perf_counter_ns()
    with browser() as found:
        environment = found.machine.environment()
        pairs = [compared(found, artifact, photo, given) for artifact in opened]
    device = this_device()
    result = {
        "device": asdict(device), "device_label": device.label, "environment": environment, "before": before,
        "after": state(), "rounds": given.rounds, "pairs_a_round": given.pairs, "samples": given.samples,
        "pairs": pairs,
        "took_s": round((perf_counter_ns() - started) / 1e9), "command": pages.command,
    }  # fmt: skip
    pages.publish(result, page(result))
    return int(any(pair["low"] > 1 + LIMIT for pair in pairs))


STUDY = Study(
    "browser", "Does the page of bench --device web add time to the times that it measures?", "browser", options, run,
    RESULTS / "browser",
)  # fmt: skip
