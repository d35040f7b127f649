"""Redux and an IP-Adapter in real runs: their factors are axes of a sweep, and all points share a model and batches."""

from __future__ import annotations

import pytest

from tests.program import Program, read_events

QUICK = ("tracking=disabled", "metrics=none", "report=off", "sampling.steps=1", "dataset.limit=2")
SMALL = ("sampling.height=64", "sampling.width=64", "optimization=none")


def test_factors_of_an_ip_adapter_are_an_axis(program: Program) -> None:
    sweep = program.sweep("+experiment=ip_adapter", *QUICK, *SMALL, "ip_adapter.scale=0,50,100")
    assert sweep.returncode == 0, sweep.stderr
    assert "models     1, each loaded once" in sweep.stdout
    images = [sweep.run(f"ip_adapter.scale={scale}").images for scale in (0, 50, 100)]
    assert len({tuple(sorted(each.values())) for each in images}) == 3
    (log,) = (sweep.directory / "events").iterdir()
    batches = [event for event in read_events(log) if event.span == "denoise" and not event.warmup]
    assert any(len(event.extra["runs"]) == 3 for event in batches), "a batch mixes factors"


@pytest.mark.slow
def test_factors_of_redux_are_axes_of_one_sweep(program: Program) -> None:
    command = ("+experiment=redux", *QUICK, *SMALL, "redux.scale=0.5,1", "redux.reads_prompt=true,false")
    sweep = program.sweep(*command)
    assert sweep.returncode == 0, sweep.stderr
    assert "models     1, each loaded once" in sweep.stdout
    images = [
        sweep.run(f"redux.reads_prompt={reads}", f"redux.scale={scale}").images
        for scale in ("0.5", "1")
        for reads in (True, False)
    ]
    assert len({tuple(sorted(each.values())) for each in images}) == 4
