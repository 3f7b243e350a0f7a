"""The state of a machine: clocks, temperatures, power mode, power and energy, where the system tells them.

`pulse` reads text files of the kernel, which takes milliseconds. `state` also asks the tools of the makers, which may
take seconds. Nothing here needs more rights than the caller has. A value that is missing, or that the caller may not
read, is left out.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path("/")
# Bits of get_throttled of the Raspberry Pi firmware: now. The bits 16 places higher: at some time since the start.
THROTTLED = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
GPU_QUERY = {"pstate": "pstate", "mhz": "clocks.sm", "memory_mhz": "clocks.mem", "celsius": "temperature.gpu",
             "watts": "power.draw"}  # fmt: skip
GPU_QUESTION = f"--query-gpu={','.join(GPU_QUERY.values())}"


def pulse(root: Path = ROOT) -> dict[str, Any]:
    """Return load, clocks in MHz, temperatures in °C and power in W, from files of the kernel."""
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
    """Return `pulse`, governor, power mode, and what tegrastats, nvpmodel, nvidia-smi and vcgencmd tell."""
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
    """Return the energy counter of each processor package, and the value at which it wraps, in microjoules.

    The counters are those of Linux powercap (RAPL). The result is empty where there are none, or where only root may
    read them, which is the default of Linux since CVE-2020-8694.
    """
    found = {}
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        now, most = text(zone / "energy_uj"), text(zone / "max_energy_range_uj")
        if text(zone / "name").startswith("package") and now.isdigit() and most.isdigit():
            found[zone.name] = (int(now), int(most))
    return found


def spent(before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]) -> int | None:
    """Return the microjoules between two results of `energy`, with one wrap at most; None without counters."""
    if not before or before.keys() != after.keys():
        return None
    return sum((after[zone][0] - before[zone][0]) % (before[zone][1] + 1) for zone in before)


def device_memory(pid: int) -> int | None:
    """Return the bytes of a process on NVIDIA GPUs with memory of their own; None where the driver does not tell."""
    return compute_apps(output("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"), pid)


# Parsers of what the tools print


def tegrastats(printed: str) -> dict[str, Any]:
    """Parse the last whole line of NVIDIA's tegrastats.

    The values are those of the Jetson Linux Developer Guide, "tegrastats Utility": memory in MB, load in percent and
    clock in MHz of each CPU core (None for a core that is off), GPU load in percent, temperatures in °C, and power in
    mW. The power is the present value, not the mean that the tool prints beside it.
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
    """Return name and number of the power mode in the output of `nvpmodel -q`, such as "15W (0)"; empty without one."""
    found = re.search(r"NV Power Mode: *(\S+)\s*(\d*)", printed)
    return f"{found[1]} ({found[2]})" if found and found[2] else found[1] if found else ""


def nvidia_smi(printed: str) -> list[dict[str, Any]]:
    """Return the answer of each GPU to GPU_QUERY, without values that the driver does not know."""
    return [gpu for line in printed.splitlines() if (gpu := _gpu(line))]


def _gpu(line: str) -> dict[str, Any]:
    values = [value.strip() for value in line.split(",")]
    if len(values) != len(GPU_QUERY):
        return {}
    pairs = dict(zip(GPU_QUERY, values, strict=True))
    return {k: v if k == "pstate" else float(v) for k, v in pairs.items() if re.fullmatch(r"P?\d+(\.\d+)?", v)}


def compute_apps(printed: str, pid: int) -> int | None:
    """Return the bytes of a process in lines `pid, used_memory` of nvidia-smi ("4242, 310 MiB"); None without one."""
    sizes = [int(size) for of, size in re.findall(r"^(\d+), (\d+) MiB$", printed, re.MULTILINE) if int(of) == pid]
    return sum(sizes) * 2**20 if sizes else None


def vcgencmd(printed: str) -> list[str] | None:
    """Return what `vcgencmd get_throttled` ("throttled=0x50000") means; [] for no trouble, None for other output."""
    found = re.fullmatch(r"throttled=0x([0-9a-fA-F]+)", printed.strip())
    if not found:
        return None
    bits = int(found[1], 16)
    now = [what for bit, what in THROTTLED.items() if bits >> bit & 1]
    return now + [f"{what} since start" for bit, what in THROTTLED.items() if bits >> (bit + 16) & 1]


def _rails(root: Path) -> Iterator[tuple[str, float]]:
    """Yield label and watts of the power rails behind TI INA3221 monitors, which Jetson boards have."""
    for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if text(monitor / "name") != "ina3221":
            continue
        for label in sorted(monitor.glob("in[1-3]_label")):
            channel = label.name[2]
            volts = number(monitor / f"in{channel}_input", 1e3)
            amperes = number(monitor / f"curr{channel}_input", 1e3)
            if volts is not None and amperes is not None:
                yield text(label), round(volts * amperes, 3)


# Readers of files and commands


def told(**values: Any) -> dict[str, Any]:
    """Drop empty values; keep 0 and an empty `throttled` list, which tell that there is no trouble."""
    return {k: v for k, v in values.items() if v not in ("", None, {}) and (v != [] or k == "throttled")}


def text(path: Path) -> str:
    """Return the content of a system file; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""


def number(path: Path, unit: float) -> float | None:
    """Return the integer in a system file, divided by `unit`; None where there is none."""
    found = text(path)
    return int(found) / unit if re.fullmatch(r"-?\d+", found) else None


def output(*command: str, seconds: float = 10.0) -> str:
    """Return what a command prints within some seconds; empty where it is not installed or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True).stdout.strip()
    except subprocess.TimeoutExpired as stopped:  # some tools print until they are stopped
        printed = stopped.stdout or b""
        return printed.decode(errors="replace") if isinstance(printed, bytes) else printed
    except (OSError, subprocess.SubprocessError):
        return ""
