"""Which machine this is: enough to tell devices apart, nothing that tells whose it is.

No serial numbers, host, user or file names. Everything is read from the system's own text files where they exist;
what a system does not tell is left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from u2export.benchmarks.sensors import ROOT, output, text, told
from u2export.exporters.runtime import processors, versions

# Instruction sets that decide how fast a convolution runs; the kernel's names on x86 and on Arm.
X86 = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16")
AMX = ("amx_tile", "amx_int8", "amx_bf16")
ARM = ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme")
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino", "torch", "coremltools", "tensorrt", "tensorrt-rtx")
PACKAGES = ("numpy", "pillow", *RUNTIMES)


@dataclass(frozen=True)
class Device:
    """What does not change from run to run.

    Attributes:
        model: board or machine, as the firmware names it. cpu: processor. arch: machine architecture.
        cores: processors this process may use. features: instruction sets that matter here.
        memory: GiB, rounded to one decimal. os: distribution or system with its version.
        accelerators: GPUs with driver, JetPack's L4T release and the like, by kind.
        virtual: a hypervisor runs it, so neighbours may disturb it.
        soc: the chip, as the kernel names it; empty where that is the processor's own name.
    """

    model: str
    cpu: str
    arch: str
    cores: int
    features: tuple[str, ...] = ()
    memory: float = 0.0
    os: str = ""
    accelerators: Mapping[str, str] = field(default_factory=dict)
    virtual: bool = False
    soc: str = ""

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits; equal where all of the above is equal."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """One line for people."""
        name = self.cpu if self.model in ("", self.cpu) else f"{self.model}, {self.cpu}"
        cores = f"{self.cores} core" + "s" * (self.cores != 1)
        parts = [name, cores, f"{self.memory:g} GiB", self.os, *self.accelerators.values()]
        return ", ".join(filter(None, parts)) + (", virtual machine" if self.virtual else "")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Device:
        """The device in plain data; raises TypeError or KeyError where it is none."""
        return cls(**{**data, "features": tuple(data["features"])})


def this_device(root: Path = ROOT) -> Device:
    """The machine this runs on; `root` is where its file system begins."""
    cpuinfo = _cpuinfo(text(root / "proc/cpuinfo"))
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    board = text(root / "proc/device-tree/model") or text(root / "sys/devices/virtual/dmi/id/product_name")
    cpu = cpuinfo.get("model name") or cpuinfo.get("Model") or _sysctl("machdep.cpu.brand_string")
    return Device(
        model=board or _sysctl("hw.model"),
        cpu=cpu or platform.processor() or platform.machine(),
        arch=platform.machine(),
        cores=processors(),
        features=tuple(sorted(flags & {*X86, *AMX, *ARM})),
        memory=_memory(text(root / "proc/meminfo")),
        os=_os(text(root / "etc/os-release")),
        accelerators=_accelerators(root),
        virtual="hypervisor" in flags,
        soc=_soc(root),
    )


def environment() -> dict[str, Any]:
    """What may change between runs: versions of Python and of the packages that take part, processors allowed."""
    allowed = {"affinity": sorted(os.sched_getaffinity(0))} if hasattr(os, "sched_getaffinity") else {}
    return {"python": platform.python_version(), "kernel": platform.release(), **allowed, **versions(*PACKAGES)}


def _cpuinfo(text: str) -> dict[str, str]:
    """Fields of the first processor, then those of the board that Arm kernels append."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def _memory(meminfo: str) -> float:
    """GiB."""
    if total := re.search(r"MemTotal:\s+(\d+) kB", meminfo):
        return round(int(total[1]) / 2**20, 1)
    size = _sysctl("hw.memsize")
    return round(int(size) / 2**30, 1) if size.isdigit() else 0.0


def _os(release: str) -> str:
    if name := re.search(r'^PRETTY_NAME="?([^"\n]*)', release, re.MULTILINE):
        return name[1]
    mac = platform.mac_ver()[0]
    return f"macOS {mac}" if mac else f"{platform.system()} {platform.release()}"


def _l4t(root: Path) -> str:
    """`R36 (release), REVISION: 4.3, …` as `L4T 36.4.3`; empty away from Jetson."""
    found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text(root / "etc/nv_tegra_release"))
    return f"L4T {found[1]}.{found[2]}" if found else ""


def _soc(root: Path) -> str:
    """The chip: the last name in the device tree's list from board to chip ("nvidia,tegra234"), or the kernel's."""
    names = text(root / "proc/device-tree/compatible").split("\0")
    return names[-1] or text(root / "sys/devices/soc0/machine")


def _accelerators(root: Path) -> dict[str, str]:
    query = ("--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    l4t = _l4t(root)
    jetpack = output("dpkg-query", "--show", "--showformat=${Version}", "nvidia-jetpack") if l4t else ""
    return told(
        gpu="; ".join(output("nvidia-smi", *query).splitlines()),
        jetson=l4t,
        jetpack=f"JetPack {jetpack.partition('+')[0]}" if jetpack else "",
    )


def _sysctl(name: str) -> str:
    return output("sysctl", "-n", name) if platform.system() == "Darwin" else ""
