"""Parsers of what systems and makers' tools print, on lines captured from real devices."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from u2export.benchmarks import sensors
from u2export.benchmarks.device import this_device
from u2export.benchmarks.sensors import (
    compute_apps,
    energy,
    nvidia_smi,
    nvpmodel,
    output,
    pulse,
    spent,
    state,
    tegrastats,
    told,
    vcgencmd,
)  # fmt: skip

# As posted by their owners, with the JetPack they run.
ORIN_NANO = (  # L4T 36.4.3
    "07-14-2025 10:29:36 RAM 2147/7620MB (lfb 2x4MB) SWAP 1476/3810MB (cached 1MB) "
    "CPU [0%@729,0%@729,0%@729,0%@729,0%@729,0%@729] GR3D_FREQ 0% cpu@47.687C soc2@46.718C soc0@47.468C gpu@48.625C "
    "tj@48.625C soc1@48.25C VDD_IN 4556mW/4556mW VDD_CPU_GPU_CV 483mW/483mW VDD_SOC 1451mW/1451mW"
)
ORIN_NX = (  # L4T 36.4.3, four cores off, a sensor that is switched off
    "RAM 1224/15368MB (lfb 8x4MB) SWAP 0/7684MB (cached 0MB) "
    "CPU [1%@729,0%@729,0%@729,0%@729,off,off,off,off] EMC_FREQ 0% GR3D_FREQ 0%@[305] "
    "CPU@43.5C GPU@42.5C tj@43.5C SOC0@42.906C SOC1@42.156C CV0@-256C "
    "VDD_IN 4319mW/4319mW VDD_CPU_GPU_CV 499mW/499mW VDD_SOC 1200mW/1200mW"
)
NANO = (  # JetPack 4.6.1, power without a unit
    "RAM 1923/3964MB (lfb 2x2MB) SWAP 191/1982MB (cached 6MB) IRAM 0/252kB(lfb 252kB) "
    "CPU [5%@1224,4%@1224,3%@1224,6%@1224] EMC_FREQ 0%@1600 GR3D_FREQ 0%@76 APE 25 PLL@37C CPU@40C PMIC@50C GPU@40C "
    "AO@45C thermal@40C POM_5V_IN 1750/1628 POM_5V_GPU 0/0 POM_5V_CPU 366/406"
)


def test_tegrastats_of_an_orin_nano() -> None:
    found = tegrastats(ORIN_NANO)
    assert found["ram_mb"] == [2147, 7620] and found["cpu"] == [[0, 729]] * 6 and found["gpu_percent"] == 0
    assert found["celsius"] == {
        "cpu": 47.687,
        "soc2": 46.718,
        "soc0": 47.468,
        "gpu": 48.625,
        "tj": 48.625,
        "soc1": 48.25,
    }
    assert found["milliwatts"] == {"VDD_IN": 4556, "VDD_CPU_GPU_CV": 483, "VDD_SOC": 1451}


def test_tegrastats_with_cores_and_sensors_off() -> None:
    found = tegrastats(ORIN_NX)
    assert found["cpu"] == [[1, 729], [0, 729], [0, 729], [0, 729], None, None, None, None]
    assert "CV0" not in found["celsius"] and found["celsius"]["tj"] == 43.5
    assert found["milliwatts"]["VDD_IN"] == 4319


def test_tegrastats_of_a_nano() -> None:
    found = tegrastats(NANO)
    assert found["milliwatts"] == {"POM_5V_IN": 1750, "POM_5V_GPU": 0, "POM_5V_CPU": 366}
    assert found["celsius"]["thermal"] == 40 and found["cpu"][3] == [6, 1224] and found["ram_mb"] == [1923, 3964]


def test_tegrastats_takes_the_last_whole_line() -> None:
    assert tegrastats(f"{NANO}\n{ORIN_NANO}\n08-23-2026 RA")["ram_mb"] == [2147, 7620]
    assert tegrastats("") == tegrastats("tegrastats: command not found") == {}


@given(st.text() | st.text("RAMCPU[]%@/,0123456789.mWC_ \n"))
def test_parsers_take_anything(printed: str) -> None:
    assert isinstance(tegrastats(printed + ORIN_NANO[:40]), dict) and isinstance(nvpmodel(printed), str)
    assert isinstance(nvidia_smi(printed), list)
    vcgencmd(printed), compute_apps(printed, 1)


def test_power_mode() -> None:
    assert nvpmodel("NV Power Mode: MAXN_SUPER\n2") == "MAXN_SUPER (2)"
    assert nvpmodel("NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_15W_6CORE\n2\n") == "MODE_15W_6CORE (2)"
    assert nvpmodel("NV Power Mode: 25W") == "25W" and nvpmodel("sudo: a password is required") == ""


def test_throttling_of_a_raspberry_pi() -> None:
    assert vcgencmd("throttled=0x0\n") == []
    assert vcgencmd("throttled=0x50000") == ["under-voltage since start", "throttled since start"]
    assert vcgencmd("throttled=0x50005")[:2] == ["under-voltage", "throttled"]  # type: ignore[index]
    assert vcgencmd("throttled=0xe0008") == [
        "soft temperature limit", "frequency capped since start", "throttled since start",
        "soft temperature limit since start",
    ]  # fmt: skip
    assert vcgencmd("VCHI initialization failed") is None
    assert told(throttled=[], mhz=[]) == {"throttled": []}


def test_gpus() -> None:
    printed = "P0, 1980, 5001, 45, 68.21\nP8, 210, 405, [N/A], [Not Supported]"
    assert nvidia_smi(printed) == [
        {"pstate": "P0", "mhz": 1980.0, "memory_mhz": 5001.0, "celsius": 45.0, "watts": 68.21},
        {"pstate": "P8", "mhz": 210.0, "memory_mhz": 405.0},
    ]
    assert nvidia_smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.") == []
    assert compute_apps("4242, 310 MiB\n17, 100 MiB\n4242, 12 MiB", 4242) == 322 * 2**20
    assert compute_apps("4242, [N/A]", 4242) is None and compute_apps("", 1) is None


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_energy_counters_wrap(tmp_path: Path) -> None:
    zone = "sys/class/powercap/intel-rapl:0"
    write(tmp_path, {f"{zone}/name": "package-0\n", f"{zone}/energy_uj": "262143328000\n",
                     f"{zone}/max_energy_range_uj": "262143328850\n",
                     "sys/class/powercap/intel-rapl:0:0/name": "core\n",
                     "sys/class/powercap/intel-rapl:0:0/energy_uj": "5\n"})  # fmt: skip
    before = energy(tmp_path)
    assert before == {"intel-rapl:0": (262143328000, 262143328850)}
    write(tmp_path, {f"{zone}/energy_uj": "149\n"})
    assert spent(before, energy(tmp_path)) == 1000
    assert spent({}, {}) is None and spent(before, {}) is None


def test_state_of_a_jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rail = "sys/class/hwmon/hwmon3"
    write(tmp_path, {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081\n",
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "729600\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1510400\n",
        "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n", "sys/class/thermal/thermal_zone0/temp": "48562\n",
        "sys/class/thermal/thermal_zone9/type": "cv0-thermal\n",  # reading it fails where the engine is off
        f"{rail}/name": "ina3221\n", f"{rail}/in1_label": "VDD_IN\n", f"{rail}/in1_input": "5072\n",
        f"{rail}/curr1_input": "904\n",
    })  # fmt: skip
    said = {"nvpmodel": "NV Power Mode: 15W\n0", "tegrastats": ORIN_NANO}
    monkeypatch.setattr(sensors, "output", lambda *words, seconds=10.0: said.get(words[0], ""))
    now = state(tmp_path)
    assert (now["mhz"], now["mhz_limits"], now["gpu_mhz"]) == ([1510.4], [729.6, 1510.4], {"17000000.gpu": 306.0})
    assert now["celsius"] == {"cpu-thermal": 48.562} and now["watts"] == {"VDD_IN": 4.585}
    assert now["power_mode"] == "15W (0)" and now["tegrastats"]["milliwatts"]["VDD_SOC"] == 1451
    assert not {"gpu", "throttled", "turbo", "profile"} & now.keys()
    assert this_device(tmp_path).soc == "nvidia,tegra234"


def test_state_of_a_laptop(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu"
    write(tmp_path, {
        f"{cpu}/cpu0/cpufreq/scaling_governor": "powersave\n",
        f"{cpu}/cpu0/cpufreq/energy_performance_preference": "balance_power\n",
        f"{cpu}/intel_pstate/no_turbo": "1\n", "sys/firmware/acpi/platform_profile": "low-power\n",
    })  # fmt: skip
    now = state(tmp_path)
    assert (now["governor"], now["preference"], now["turbo"], now["profile"]) == (
        "powersave", "balance_power", "off", "low-power"
    )  # fmt: skip


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    assert pulse(tmp_path).keys() <= {"load"} and energy(tmp_path) == {}
    assert state(tmp_path).keys() <= {"load", "gpu"}


def test_commands_are_stopped_in_time() -> None:
    assert output("sh", "-c", "echo one; echo two; exec sleep 60", seconds=1.0).splitlines() == ["one", "two"]
    assert output("sh", "-c", "echo lost; exit 1") == output("no-such-command") == ""
