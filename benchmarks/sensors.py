"""What state a machine is in: clocks, temperatures, power mode, power, energy; each only where the system tells.

`pulse` reads the kernel's own text files, a matter of milliseconds. `state` also asks the makers' tools, which may take
seconds. Nothing here needs more rights than the caller has: what may not be read is left out, as what is not there.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path("/")
# Bits of the Raspberry Pi firmware's get_throttled: now, and (16 higher) at some time since it started.
THROTTLED = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
GPU_QUERY = {"pstate": "pstate", "mhz": "clocks.sm", "memory_mhz": "clocks.mem", "celsius": "temperature.gpu",
             "watts": "power.draw"}  # fmt: skip
GPU_QUESTION = f"--query-gpu={','.join(GPU_QUERY.values())}"


def pulse(root: Path = ROOT) -> dict[str, Any]:
    """Load, clocks in MHz, temperatures in °C and power in W, read from the kernel's files."""
    cpus = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    clocks = [f for f in sorted((root / "sys/class/devfreq").glob("*/cur_freq")) if "gpu" in str(f.resolve())]
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    return told(
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        mhz=[mhz for cpu in cpus if (mhz := number(cpu / "scaling_cur_freq", 1e3)) is not None],
        gpu_mhz={f.parent.name: number(f, 1e6) for f in clocks},
        celsius=told(**{text(zone / "type"): number(zone / "temp", 1e3) for zone in zones if text(zone / "type")}),
        watts=dict(_rails(root)),
    )


def state(root: Path = ROOT) -> dict[str, Any]:
    """`pulse`, governor and power mode, and what tegrastats, nvpmodel, nvidia-smi and vcgencmd say where they exist."""
    system = root / "sys/devices/system/cpu"
    cpus = sorted(system.glob("cpu[0-9]*/cpufreq"))
    limits = {number(cpu / f"scaling_{end}_freq", 1e3) for cpu in cpus for end in ("min", "max")} - {None}
    jetson = (root / "etc/nv_tegra_release").exists()
    return told(
        **pulse(root),
        governor=",".join(sorted({text(cpu / "scaling_governor") for cpu in cpus} - {""})),
        preference=",".join(sorted({text(cpu / "energy_performance_preference") for cpu in cpus} - {""})),
        mhz_limits=sorted(filter(None, limits)),
        turbo={"0": "on", "1": "off"}.get(text(system / "intel_pstate/no_turbo"))
        or {"0": "off", "1": "on"}.get(text(system / "cpufreq/boost")),
        profile=text(root / "sys/firmware/acpi/platform_profile"),
        power_mode=nvpmodel(output("nvpmodel", "-q")) if jetson else "",
        tegrastats=tegrastats(output("tegrastats", "--interval", "500", seconds=1.5)) if jetson else {},
        gpu=nvidia_smi(output("nvidia-smi", GPU_QUESTION, "--format=csv,noheader,nounits")),
        throttled=vcgencmd(output("vcgencmd", "get_throttled")),
    )


def energy(root: Path = ROOT) -> dict[str, tuple[int, int]]:
    """Microjoules on each processor package's counter and where the counter wraps (Linux powercap, RAPL).

    Empty where there are none, or they are root's alone to read, as Linux has it since CVE-2020-8694.
    """
    found = {}
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        now, most = text(zone / "energy_uj"), text(zone / "max_energy_range_uj")
        if text(zone / "name").startswith("package") and now.isdigit() and most.isdigit():
            found[zone.name] = (int(now), int(most))
    return found


def spent(before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]) -> int | None:
    """Microjoules between two readings of `energy`, at most one wrap in between; None without counters."""
    if not before or before.keys() != after.keys():
        return None
    return sum((after[zone][0] - before[zone][0]) % (before[zone][1] + 1) for zone in before)


def device_memory(pid: int) -> int | None:
    """Bytes a process holds on NVIDIA GPUs with memory of their own; None where the driver does not tell."""
    return compute_apps(output("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"), pid)


# What the tools print


def tegrastats(printed: str) -> dict[str, Any]:
    """The last whole line of NVIDIA's tegrastats.

    Statistics as in the Jetson Linux Developer Guide, "tegrastats Utility": memory in MB, CPU load in percent and clock
    in MHz by core (None: off), GPU load in percent, temperatures in °C, power in mW: now, not the tool's mean.
    """
    lines = [line for line in printed.splitlines() if "RAM " in line and "CPU [" in line]
    if not lines:
        return {}
    line = lines[-1]
    ram = re.search(r"\bRAM (\d+)/(\d+)MB", line)
    cores = re.search(r"CPU \[([^\]]*)\]", line)
    gpu = re.search(r"GR3D_FREQ (\d+)%", line)
    power = re.findall(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/\d+(?:mW)?(?= |$)", line)
    celsius = {zone: float(value) for zone, value in re.findall(r"([A-Za-z][\w-]*)@(-?[\d.]+)C\b", line)}
    return told(
        ram_mb=[int(ram[1]), int(ram[2])] if ram else None,
        cpu=[_core(core) for core in cores[1].split(",")] if cores else None,
        gpu_percent=int(gpu[1]) if gpu else None,
        celsius={zone: value for zone, value in celsius.items() if value > -100},  # -256: the sensor is switched off
        milliwatts={rail: int(value) for rail, value in power if rail not in ("RAM", "SWAP")},
    )


def _core(text: str) -> list[int] | None:
    found = re.fullmatch(r"(\d+)%@(\d+)", text.strip())
    return [int(found[1]), int(found[2])] if found else None


def nvpmodel(printed: str) -> str:
    """Name and number of the power mode `nvpmodel -q` prints, warnings before it skipped: "15W (0)"."""
    found = re.search(r"NV Power Mode: *(\S+)\s*(\d*)", printed)
    return f"{found[1]} ({found[2]})" if found and found[2] else found[1] if found else ""


def nvidia_smi(printed: str) -> list[dict[str, Any]]:
    """Each GPU's answer to GPU_QUERY, values the driver does not know left out."""
    return [gpu for line in printed.splitlines() if (gpu := _gpu(line))]


def _gpu(line: str) -> dict[str, Any]:
    values = [value.strip() for value in line.split(",")]
    if len(values) != len(GPU_QUERY):
        return {}
    pairs = dict(zip(GPU_QUERY, values, strict=True))
    return {k: v if k == "pstate" else float(v) for k, v in pairs.items() if re.fullmatch(r"P?\d+(\.\d+)?", v)}


def compute_apps(printed: str, pid: int) -> int | None:
    """Bytes of a process in nvidia-smi's `pid, used_memory` lines ("4242, 310 MiB"); None if it is not there."""
    sizes = [int(size) for of, size in re.findall(r"^(\d+), (\d+) MiB$", printed, re.MULTILINE) if int(of) == pid]
    return sum(sizes) * 2**20 if sizes else None


def vcgencmd(printed: str) -> list[str] | None:
    """What `vcgencmd get_throttled` means ("throttled=0x50000"), [] for nothing; None if it says something else."""
    found = re.fullmatch(r"throttled=0x([0-9a-fA-F]+)", printed.strip())
    if not found:
        return None
    bits = int(found[1], 16)
    now = [what for bit, what in THROTTLED.items() if bits >> bit & 1]
    return now + [f"{what} since start" for bit, what in THROTTLED.items() if bits >> (bit + 16) & 1]


def _rails(root: Path) -> Iterator[tuple[str, float]]:
    """Power rails behind TI INA3221 monitors, as on Jetson boards: volts times amperes, by label."""
    for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if text(monitor / "name") != "ina3221":
            continue
        for label in sorted(monitor.glob("in[1-3]_label")):
            channel = label.name[2]
            volts = number(monitor / f"in{channel}_input", 1e3)
            amperes = number(monitor / f"curr{channel}_input", 1e3)
            if volts is not None and amperes is not None:
                yield text(label), round(volts * amperes, 3)


# Reading


def told(**values: Any) -> dict[str, Any]:
    """The values that say something; 0 does, and so does the empty list of a Raspberry Pi's troubles."""
    return {k: v for k, v in values.items() if v not in ("", None, {}) and (v != [] or k == "throttled")}


def text(path: Path) -> str:
    """Content of a system file; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""


def number(path: Path, unit: float) -> float | None:
    """The integer in a system file in `unit`s, None where there is none."""
    found = text(path)
    return int(found) / unit if re.fullmatch(r"-?\d+", found) else None


def output(*command: str, seconds: float = 10.0) -> str:
    """What a command prints, within so many seconds; empty where it is not installed or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True).stdout.strip()
    except subprocess.TimeoutExpired as stopped:  # tools that print until they are stopped
        printed = stopped.stdout or b""
        return printed.decode(errors="replace") if isinstance(printed, bytes) else printed
    except (OSError, subprocess.SubprocessError):
        return ""
