"""Reads why the clocks of a GPU are reduced: the bits of NVML's answer, as short names."""

from __future__ import annotations

from typing import Any

IDLE_BIT = 0x1
"""An idle device reduces its clocks because it has no work. This is not throttling."""

REASONS = {
    0x2: "application_clocks",
    0x4: "power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "power_brake",
    0x100: "display_clocks",
    0x200: "board_limit",
    0x400: "reliability",
}
"""Names by bit. The bits are those of nvml.h: nvmlClocksEventReason* and, for the last two, nvmlClocksThrottleReason*.
`hw_slowdown` is always set with `hw_thermal` and with `power_brake`."""


def read_reasons(nvml: Any, handle: Any) -> tuple[str, ...]:
    """Return the reasons that reduce the clocks now, in the order of the bits.

    Raises:
        pynvml.NVMLError: NVML could not read them.
    """
    try:
        bits = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except (AttributeError, nvml.NVMLError_FunctionNotFound):  # pynvml or the driver is older than the new name
        bits = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    return name_reasons(bits)


def name_reasons(bits: int) -> tuple[str, ...]:
    """Return the names of the bits that are set, except idle. A bit without a name is shown as a hexadecimal number."""
    set_bits = [1 << place for place in range(bits.bit_length()) if bits >> place & 1]
    return tuple(REASONS.get(bit, hex(bit)) for bit in set_bits if bit != IDLE_BIT)
