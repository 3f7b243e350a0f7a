"""Everything a contributor or a CI runs. `nox -l` lists it; sessions install into environments of their own."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
import time
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests", "accuracy"]
nox.options.reuse_existing_virtualenvs = True
nox.needs_version = ">=2024.4"

CONSTRAINTS = ("-c", "constraints.txt")
TESTS = (
    "pytest", "pytest-cov", "pytest-randomly", "pytest-xdist", "hypothesis", "opencv-python-headless", "playwright",
    "pysodmetrics", "moto[server]", "paramiko", "s3fs",
)  # fmt: skip
EXTRAS = ("onnx", "openvino", "coreml", "trt-rtx", "charts", "imports", "video", "web", "report", "cluster")
# Extras whose packages are large, or ask for other versions than those of the rest: sessions of their own.
APART = ("litert", "executorch")


def install(session: nox.Session, extras: tuple[str, ...], *more: str) -> None:
    """The project as users get it, as a wheel, with the pinned versions."""
    shutil.rmtree("build", ignore_errors=True)  # setuptools would bring deleted modules back from here
    wanted = f".[{','.join(extras)}]" if extras else "."
    session.install(*CONSTRAINTS, wanted, *more)
    # Same version, new code: pip would keep the wheel it installed before.
    session.install("--no-deps", "--force-reinstall", ".", silent=True)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, the slow ones included. `nox -s tests -- -m "not slow"` for the fast ones.

    The order is that of the files, so that a failure is the same on every machine; with options of your own, pytest's
    plugin randomly shuffles it: `nox -s tests -- -p randomly`.
    """
    install(session, EXTRAS, *TESTS)
    # One process a core with one thread each: most of a test is single-threaded work between short computations.
    workers = ("-n", str(min(4, os.cpu_count() or 1)), "--dist", "worksteal")
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    session.run("pytest", *workers, *(session.posargs or ["--durations=15", "-p", "no:randomly"]), env=one_thread)


@nox.session
@nox.parametrize("extra", [nox.param(name, id=name) for name in ("base", *EXTRAS, *APART)])
def backend(session: nox.Session, extra: str) -> None:
    """The tests with one extra only: what is not installed is skipped, the rest passes.

    `litert` and `executorch` run the tests of their target, and compare the masks of its int8 file with the committed
    baseline, as `accuracy` does for the others. Options are those of pytest, without the comparison: `-- tests` runs
    all tests. `-- update` accepts what the comparison measured.
    """
    install(session, () if extra == "base" else (extra,), "pytest", "hypothesis")
    if session.posargs != ["update"]:
        own = (f"tests/test_{extra}.py",) if extra in APART and not session.posargs else ()
        session.run("pytest", "-m", "not slow", *own, *session.posargs)
    if extra in APART and session.posargs in ([], ["update"]):
        same_masks(session, extra, ((extra, "--int8", "--calib", "calibration/"),))


@nox.session
def types(session: nox.Session) -> None:
    """Mypy over the installed wheel: it follows no mapping of folders in a checkout."""
    install(session, EXTRAS, "mypy", "playwright")  # a study of browsers imports Playwright
    config = Path("pyproject.toml").resolve()
    session.chdir(session.create_tmp())
    session.run("mypy", "--strict", "--config-file", str(config), "-p", "u2export")


@nox.session
def accuracy(session: nox.Session) -> None:
    """Our own artifacts' masks against the committed baseline. `nox -s accuracy -- update` accepts what it measured."""
    install(session, ("onnx", "openvino"))
    calib = ("--calib", "calibration/")
    exports = (("onnx",), ("openvino", "--fp32"), ("ort", "--int8", *calib), ("openvino", "--int8", *calib))
    same_masks(session, "cpu", exports)


def same_masks(session: nox.Session, name: str, exports: tuple[tuple[str, ...], ...]) -> None:
    """Export, and compare the masks with benchmarks/baselines/NAME.json; the words of the session may accept them.

    All photos of the repository are compared, those that int8 was calibrated on too: the comparison is with the same
    export of an earlier commit, not a claim about new photos, and the means of the four held back decide nothing.
    """
    out, baselines = Path(f"artifacts/accuracy-{name}"), Path("benchmarks/baselines")
    shutil.rmtree(out, ignore_errors=True)
    photos = out / "photos"
    photos.mkdir(parents=True)
    for folder in ("reference/photos", "calibration/images"):
        for photo in Path(folder).glob("*.jpg"):
            shutil.copy(photo, photos)
    results, baseline = str(out / "results.json"), str(baselines / f"{name}.json")
    for words in exports:
        session.run("u2export", *words, "--out", str(out))
    records = sorted(str(path) for path in out.glob("*.json"))
    session.run(
        "u2export", "bench", *records, "--images", str(photos), "--arithmetics", "default", "--no-latency",
        "--json", results,
    )  # fmt: skip
    if session.posargs:
        session.run("u2export", "baseline", *session.posargs, results, "--baseline", baseline)
    else:
        policy = str(baselines / "policy.toml")
        session.run("u2export", "check", results, "--baseline", baseline, "--policy", policy)


@nox.session
def ready(session: nox.Session) -> None:
    """Make the artifact that the wheel ships (`u2export pull`) again: the published u2netp in int8, bundled photos."""
    install(session, ("onnx",))
    made, shipped = Path(session.create_tmp(), "made"), Path("exporters/shipped")
    shutil.rmtree(made, ignore_errors=True)
    session.run("u2export", "ort", "--int8", "--calib", "calibration/", "--out", str(made))
    for path in sorted(made.glob("u2netp-320-ort-int8.onnx*")):
        shutil.copy(path, shipped)
        session.log("made %s", shipped / path.name)


@nox.session
def pictures(session: nox.Session) -> None:
    """The pictures of the README's first screen: masks, and a recording of `u2export bench`. `-- masks` for one."""
    install(session, ("onnx",))
    session.run("python", "docs/make_pictures.py", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def rembg(session: nox.Session) -> None:
    """The real rembg from PyPI, with the published file and with three artifacts: masks, and speed in one run.

    rembg asks for other versions than the pinned ones, so it has an environment of its own.
    """
    install(session, ("onnx",), "pytest", "hypothesis")
    apart = Path(session.create_tmp(), "rembg")
    session.run("python", "-m", "venv", str(apart))
    python = str(apart / ("Scripts" if os.name == "nt" else "bin") / "python")
    session.run(python, "-m", "pip", "install", "--quiet", "rembg[cpu]==2.0.86", external=True)
    env = {"U2EXPORT_REMBG_PYTHON": python, "U2EXPORT_REMBG_ROUNDS": "12", "OMP_NUM_THREADS": "1"}
    session.run("pytest", "-s", "tests/test_rembg.py", *session.posargs, env=env)


# What a study needs; every extra if it is not listed here.
STUDIES: dict[str, tuple[str, ...]] = {
    "fuzz": ("onnx", "imports"), "kills": ("openvino", "coreml", "charts", "report"),
    "gate_coverage": (), "calibration_scale": (), "gate_mutants": ("onnx",), "gate_power": ("onnx",),
    "gate_false_alarms": ("onnx", "openvino"),
    "overhead": ("onnx", "openvino"), "calibration_cost": ("onnx", "openvino"), "int8_fidelity": ("onnx", "openvino"),
    "coreml_fidelity": ("onnx", "coreml"), "trt_fidelity": ("onnx", "trt-rtx"),
    "phones": ("onnx", "litert-runtime", "executorch"), "browser": ("onnx", "web"),
    "cluster": ("onnx", "cluster"),
}  # fmt: skip


@nox.session
def study(session: nox.Session) -> None:
    """One study of the toolkit itself: `nox -s study -- NAME …`. Without a name it lists the studies."""
    name = session.posargs[0] if session.posargs else "gate_coverage"
    install(session, STUDIES.get(name, EXTRAS), *(["playwright"] if name == "browser" else []))
    session.run("python", "-m", "u2export.benchmarks.studies", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Damaged files for some minutes, others each day: `nox -s fuzz -- --minutes 10`. A finding is a failure."""
    install(session, STUDIES["fuzz"])
    first = str(1_000_000 * int(time.time() // 86_400))  # a case depends on its number alone
    out = ("--out", "artifacts/fuzz", "--count", "1000000", "--first", first)
    session.run("python", "-m", "u2export.benchmarks.studies", "fuzz", *out, *(session.posargs or ("--minutes", "10")))


# Licences of what the extras install that let others use, change and pass on, also in products.
PERMISSIVE = ("MIT", "BSD", "Apache", "ISC", "Python Software Foundation", "PSF", "MPL", "Mozilla", "Unlicense", "HPND",
              "Zlib", "CC0", "0BSD", "Public Domain", "WTFPL")  # fmt: skip


@nox.session
def licenses(session: nox.Session) -> None:
    """The licences of all packages that the extras install; one that is not permissive is a failure."""
    install(
        session,
        ("onnx", "openvino", "coreml", "charts", "imports", "video", "web", "report", "cluster"),
        "pip-licenses",
    )
    session.run("pip-licenses", "--format=markdown", "--order=license")
    session.run("pip-licenses", "--partial-match", "--allow-only", ";".join(PERMISSIVE))


@nox.session
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of the pinned versions. Without the database on the network it says so and passes."""
    install(
        session, ("onnx", "openvino", "coreml", "charts", "imports", "video", "web", "report", "cluster"), "pip-audit"
    )
    found = Path(session.create_tmp(), "audit.json")
    found.unlink(missing_ok=True)
    words = ("--skip-editable", "--progress-spinner=off", "--format=json", "--output", str(found))
    session.run("pip-audit", *words, success_codes=[0, 1], silent=True)
    if not found.is_file():
        session.warn("pip-audit cannot reach its database of vulnerabilities: nothing was audited")
        return
    packages = json.loads(found.read_text(encoding="utf-8"))["dependencies"]
    known = [f"{p['name']} {p['version']}: {v['id']}" for p in packages for v in p.get("vulns", ())]
    session.log("%d packages audited, %d vulnerabilities", len(packages), len(known))
    if known:
        session.error("\n".join(known))


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's rules and its format."""
    session.install(*CONSTRAINTS, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def site(session: nox.Session) -> None:
    """The pages of docs/ as a site in artifacts/site; a broken link or any other warning is a failure."""
    session.install(*CONSTRAINTS, "sphinx", "myst-parser", "furo")
    session.install(*CONSTRAINTS, ".", silent=True)  # the site says the version
    words = ("-W", "--keep-going", "-n", "-q", "-c", "docs/site", "-b", "html")
    session.run("sphinx-build", *words, ".", "artifacts/site")
    session.log("open artifacts/site/docs/index.html")


@nox.session
def release(session: nox.Session) -> None:
    """All of a release but the upload: dist/, built twice and compared, checked, installed and run.

    `nox -s release -- v0.2.0` also compares the version with a tag. Both builds take the last commit, not the folder.
    """
    session.install(*CONSTRAINTS, "build", "twine")
    epoch = str(session.run("git", "log", "-1", "--format=%ct", external=True, silent=True)).strip()
    os.umask(0o022)  # wheels hold the modes of files
    builds = []
    for name in ("first", "second"):
        checkout, made = Path(session.create_tmp(), name), Path(session.create_tmp(), f"{name}-dist")
        for folder in (checkout, made):
            shutil.rmtree(folder, ignore_errors=True)
        session.run("git", "clone", "--quiet", ".", str(checkout), external=True)
        command = ("python", "-m", "build", "--outdir", str(made), str(checkout))
        session.run(*command, env={"SOURCE_DATE_EPOCH": epoch}, silent=True)
        for path in made.glob("*.tar.gz"):
            normalise(path, int(epoch))
        builds.append({path.name: path.read_bytes() for path in made.iterdir()})
    if builds[0] != builds[1]:
        session.error(f"two builds differ: {[n for n in builds[0] if builds[0][n] != builds[1].get(n)]}")
    shutil.rmtree("dist", ignore_errors=True)
    shutil.copytree(made, "dist")
    files = sorted(map(str, Path("dist").iterdir()))
    session.run("twine", "check", "--strict", *files)
    fresh = Path(session.create_tmp(), "fresh")
    session.run("python", "-m", "venv", "--clear", str(fresh))
    python = str(fresh / "bin" / "python")
    session.run(python, "-m", "pip", "install", "--quiet", *(f for f in files if f.endswith(".whl")), external=True)
    session.run(python, "-m", "u2export", "--help", external=True, silent=True)
    version = str(session.run(python, "-m", "u2export", "--version", external=True, silent=True)).split()[-1]
    if session.posargs and session.posargs[0] != f"v{version}":
        session.error(f"the tag is {session.posargs[0]}, the package says {version}")
    session.log("ready to upload: %s", ", ".join(files))


def normalise(path: Path, epoch: int) -> None:
    """Write a .tar.gz anew without what depends on the machine: times, owners, modes; setuptools keeps them."""
    packed = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old, key=lambda m: m.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    path.write_bytes(gzip.compress(packed.getvalue(), mtime=epoch))


@nox.session
def demo(session: nox.Session) -> None:
    """Real weights, real photos: export, check, measure, print the table. Everything lands in artifacts/."""
    install(session, ("onnx", "openvino"))
    out = Path("artifacts")
    shutil.rmtree(out, ignore_errors=True)
    calib = ("--calib", "calibration/")
    for words in (
        ("onnx",),
        ("ort", "--int8", *calib),
        ("openvino", "--fp32"),
        ("openvino", "--fp16", *calib),
        ("openvino", "--int8", *calib),
    ):
        session.run("u2export", *words, "--out", str(out))
    records = sorted(str(path) for path in out.glob("*.json"))
    sheet, results = str(out / "masks.png"), str(out / "results.json")
    session.run(
        "u2export", "bench", *records, "--images", "reference/photos", "--json", results, "--contact-sheet", sheet
    )  # fmt: skip
    session.run("u2export", "table", results, "--format", "md", "--out", str(out / "results.md"))
    session.log("artifacts: %s", ", ".join(sorted(str(p) for p in out.iterdir())))
