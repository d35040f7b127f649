"""Shows what the device sampler reads, and how much of a core it uses: python benchmarks/sampler.py [--seconds 30]."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict

import torch

from fluxexp.config.schema import ParallelismConfig
from fluxexp.parallel.topology import join, leave
from fluxexp.telemetry import DeviceSampler


def main() -> None:
    """Run the sampler while the process is otherwise idle, then while the device is busy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="duration of the idle part")
    args = parser.parse_args()
    topology = join(
        ParallelismConfig(
            mode="single",
            context_size=None,
            context_kind="ulysses",
            schedule="static",
            device="auto",
            cpu_threads=1,
            expect_world_size=None,
            join_timeout_s=1800,
            lost_after_s=None,
            hung_after_s=None,
        )
    )
    with DeviceSampler.of(topology.device_uuid) as sampler:
        time.sleep(2.0)  # opening the driver happens only once, so it does not count
        start_s, cpu_s = time.perf_counter(), time.process_time()
        time.sleep(args.seconds)
        fraction = (time.process_time() - cpu_s) / (time.perf_counter() - start_s)
        print(f"{topology.device_name}: the sampler uses {fraction:.2%} of a core for one reading per second")
        sampler.restart_means()
        _keep_busy(topology.device, args.seconds / 3)
        print(json.dumps(asdict(sampler.figures()), indent=2))
        if sampler.error:
            print(f"error: {sampler.error}")
    leave()


def _keep_busy(device: torch.device, seconds: float) -> None:
    """Multiply matrices on `device` for `seconds` seconds."""
    size = 8192 if device.type == "cuda" else 512
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        for _ in range(8):
            matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
