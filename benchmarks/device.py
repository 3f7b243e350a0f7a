"""What a machine is: enough to tell devices apart, and nothing that tells whose machine it is.

There are no serial numbers and no names of hosts, users or files. The values come from text files of the system, where
these exist. A value that the system does not tell is left out.
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

# Instruction sets that decide how fast a convolution runs, by the kernel's names on x86 and on Arm.
X86 = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16")
AMX = ("amx_tile", "amx_int8", "amx_bf16")
ARM = ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme")
# The fastest first; a processor that has one of them has those of its family below it too.
INT8_INSTRUCTIONS = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "i8mm": "I8MM",
    "asimddp": "dot product",
}
PACKAGED = (
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
    "coremltools",
    "tensorrt",
    "tensorrt-rtx",
    "ai-edge-litert",
    "executorch",
)
PACKAGES = ("numpy", "pillow", *PACKAGED)
# What decides the times of a row. The last two are those of rows in a browser.
RUNTIMES = (*PACKAGED, "onnxruntime-web", "browser")


@dataclass(frozen=True)
class Device:
    """What does not change on a machine from run to run.

    Attributes:
        model: name of the board or machine, from the firmware.
        cpu: name of the processor.
        arch: architecture, such as "x86_64".
        cores: number of processors that this process may use.
        features: instruction sets of X86, AMX and ARM that the processor has.
        memory: main memory in GiB, rounded to one decimal.
        os: distribution or system, with its version.
        accelerators: "gpu" (name, driver, memory), "jetson" (L4T release) and "jetpack", where they exist.
        virtual: whether a hypervisor runs the machine, so that other machines may disturb it.
        soc: the kernel's name of the chip; empty where the kernel names none.
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
        """Twelve hex digits, which are equal for devices of equal attributes."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def int8_instructions(self) -> str:
        """The best instructions for 8-bit networks among the features; "" where none is known.

        They decide how much int8 gains. Processors of one name can differ in them, above all in virtual machines.
        """
        return next((name for feature, name in INT8_INSTRUCTIONS.items() if feature in self.features), "")

    @property
    def label(self) -> str:
        """One line that describes the device to people."""
        name = ", ".join(dict.fromkeys(filter(None, (self.model, self.cpu))))
        cores = f"{self.cores} core" + "s" * (self.cores != 1)
        if self.int8_instructions:
            cores += f" with {self.int8_instructions}"
        parts = [name, cores, f"{self.memory:g} GiB" if self.memory else "", self.os, *self.accelerators.values()]
        return ", ".join(filter(None, parts)) + (", virtual machine" if self.virtual else "")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Device:
        """Return the device in plain data.

        Raises:
            TypeError, KeyError, AttributeError: the data holds no device.
        """
        texts = (*data["features"], *data.get("accelerators", {}).values())
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise TypeError(f"{wrong[0]!r:.40} is no name of a feature or accelerator")
        return cls(**{**data, "features": tuple(data["features"])})


def this_device(root: Path = ROOT) -> Device:
    """Return what this machine is; `root` is the root of its file system."""
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
    """Return what may change between runs: versions of Python, the kernel and packages, and the allowed processors."""
    allowed = {"affinity": sorted(os.sched_getaffinity(0))} if hasattr(os, "sched_getaffinity") else {}
    return {"python": platform.python_version(), "kernel": platform.release(), **allowed, **versions(*PACKAGES)}


def _cpuinfo(text: str) -> dict[str, str]:
    """Return the fields of the first processor, and those of the board, which Arm kernels append."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def _memory(meminfo: str) -> float:
    """Return the main memory in GiB; 0 where the system does not tell."""
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
    """Return `R36 (release), REVISION: 4.3, …` as `L4T 36.4.3`; empty where the machine is no Jetson."""
    found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text(root / "etc/nv_tegra_release"))
    return f"L4T {found[1]}.{found[2]}" if found else ""


def _soc(root: Path) -> str:
    """Return the chip: the last name in the device tree's list from board to chip, or the kernel's name of it."""
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
