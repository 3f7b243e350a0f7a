"""How long does it take to check a large set of calibration photos, and how much memory?

Photos of increasing number are checked by `Calibration.open`, as `--calib` does: found, decoded, hashed, judged, and
compared with each other. Every number runs in a process of its own, so that its peak of memory is its own. The search
for look-alikes is timed apart as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from PIL import Image

from u2export.benchmarks.studies.study import RESULTS, Pages, Study, machine, now, progress
from u2export.benchmarks.tables.markdown import table
from u2export.calibration.dataset import Calibration
from u2export.calibration.look_alikes import LookAlikes
from u2export.calibration.photo_checks import Candidate, check_photo, parallel
from u2export.errors import UserError
from u2export.reference.image import Contract
from u2export.reference.photos import find_photos

COUNTS = (1000, 2000, 5000, 10000, 20000)
SIDE = 96
COPIES = 50  # one photo of this number is a copy of an earlier one
GRID = 7
CHILD = (sys.executable, "-m", "u2export.benchmarks.studies.calibration_scale")


def write_photos(folder: Path, count: int, side: int = SIDE) -> None:
    """Write smooth random pictures as JPEG files; one of COPIES is an earlier picture in another quality."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        copy = number % COPIES == COPIES - 1
        grid = np.random.default_rng(number - number % COPIES if copy else number).integers(0, 256, (GRID, GRID, 3))
        picture = Image.fromarray(grid.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:06d}.jpg", quality=60 if copy else 90)


def check(folder: Path) -> dict[str, Any]:
    """Check the photos in a folder twice: all of it, and the search for look-alikes alone. Times are in seconds."""
    contract = Contract()
    before = _peak()
    start, worked = perf_counter(), process_time()
    found = Calibration.open(folder, contract)
    whole, worked = perf_counter() - start, process_time() - worked
    peak = _peak()
    thumbs = [c.thumb for c in parallel(lambda c: check_photo(c, contract), _candidates(folder))]
    start = perf_counter()
    first = LookAlikes(thumbs).first_before()
    search = perf_counter() - start
    return {
        "photos": len(found), "look_alikes": sum(f >= 0 for f in first), "seconds": round(whole, 3),
        "processor_seconds": round(worked, 3),
        "search_seconds": round(search, 3), "mb_before": round(before, 1), "mb_peak": round(peak, 1),
    }  # fmt: skip


def _candidates(folder: Path) -> list[Candidate]:
    return [Candidate(path.name, path) for path in find_photos([folder])]


def _peak() -> float:
    """The peak of this process's memory so far, in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def page(result: Mapping[str, Any]) -> str:
    """Return the Markdown page."""
    cells = [
        (
            f"{r['photos']:,}", f"{r['look_alikes']:,}", f"{r['seconds']:.1f}", f"{r['processor_seconds']:.1f}",
            f"{r['search_seconds']:.2f}",
            f"{r['mb_before']:.0f}", f"{r['mb_peak']:.0f}",
            f"{1e3 * (r['mb_peak'] - r['mb_before']) / r['photos']:.1f}",
        )
        for r in result["runs"]
    ]  # fmt: skip
    titles = ("photos", "look-alikes", "whole check s", "processor s", "search s", "MB before", "MB peak", "kB a photo")
    return f"""# Large sets of calibration photos

{table(titles, cells, "rrrrrrrr")}

Device: {result["machine"]["label"]}, {result["when"][:10]}. Pictures are JPEG files of {result["side"]} x
{result["side"]} pixels; one of {COPIES} is an earlier picture in another quality. Whole check: what
`u2export calib check` and `--calib` do: files are found, decoded, hashed, judged and compared with each other.
Processor: the processor time of the whole check, which other work on the machine hardly lengthens. Search: the
look-alikes alone. Each row is one process. Larger photos take longer to decode; `--limit` reads fewer of them.

Again:
```sh
{result["command"]}
```
"""


def options(parser: ArgumentParser) -> None:
    """Add the options of this study."""
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="numbers of photos; %(default)s")
    parser.add_argument("--side", type=int, default=SIDE, help="height and width of the pictures; %(default)s")


def run(given: Namespace, pages: Pages) -> int:
    """Check sets of all sizes, and write both pages.

    Raises:
        UserError: a number of photos is below 2, or the check of a set failed.
    """
    if min(given.counts) < 2:
        raise UserError("a set has at least 2 photos", "give larger --counts")
    runs = []
    for count in given.counts:
        with tempfile.TemporaryDirectory() as folder:
            write_photos(Path(folder) / "photos", count, given.side)
            done = subprocess.run([*CHILD, f"{folder}/photos"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{count} photos failed: {done.stderr.strip().splitlines()[-1:]}", "run the check by hand")
        runs.append(json.loads(done.stdout))
        progress(f"{count} photos: {runs[-1]['seconds']} s")
    result = {
        "side": given.side, "machine": machine(), "when": now(), "command": pages.command, "runs": runs,
    }  # fmt: skip
    pages.publish(result, page(result))
    return 0


STUDY = Study("calibration_scale", __doc__.splitlines()[0], "scale", options, run, RESULTS / "int8")

if __name__ == "__main__":
    print(json.dumps(check(Path(sys.argv[1]))))
