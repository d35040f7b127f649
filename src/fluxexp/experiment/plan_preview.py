"""`debug=plan`: what a run would do, and everything for which it would be refused, without loading a model."""

from __future__ import annotations

import sys

from fluxexp.config.schema import NoMetricsConfig
from fluxexp.errors import ConfigError, FluxexpError, Problem, StorageError
from fluxexp.experiment.planner import has_gpu
from fluxexp.plan import Plan
from fluxexp.rank_environment import RankEnvironment


def print_plan(plan: Plan) -> None:
    """Print what a run would do.

    Raises:
        StorageError: its earlier results cannot be read.
    """
    config = plan.config
    pending = plan.pending()
    sampling = config.sampling
    lines = [
        f"model      {config.model.name} ({config.model.family})",
        f"scheduler  {config.scheduler.name}, {sampling.steps} steps, guidance {sampling.guidance:g}"
        f"{_second_pass(plan)}",
        f"dataset    {config.dataset.kind}, {len(plan.dataset)} samples x {sampling.images_per_sample}",
        f"tasks      {plan.num_tasks}, of which {plan.num_tasks - len(pending)} are done",
        f"processes  {RankEnvironment.from_environment().world_size}",
        f"directory  {plan.directory.address}",
        *(f"note       {text}" for text in plan.dataset.notes),
    ]
    print("\n".join(lines), file=sys.stdout)


def _second_pass(plan: Plan) -> str:
    scale = plan.config.sampling.true_cfg_scale
    if scale > 1:
        return f", true CFG {scale:g} (two passes per step)"
    return ", two passes per step where a sample asks for them" if plan.makes_second_passes else ""


def preview(plan: Plan) -> None:
    """Print the plan, then check what a run checks later than a plan.

    Raises:
        ConfigError: with all reasons for which the run would be refused.
    """
    problems: list[Problem] = []
    for step in (print_plan, _require_metrics, _require_directory):
        try:
            step(plan)
        except ConfigError as error:
            problems += error.problems
        except StorageError as error:
            problems.append(Problem("output.dir", str(error), plan.config.output.dir))
    if plan.config.parallelism.device == "cuda" and not has_gpu("cuda"):
        hint = "use auto or cpu, or check the driver and CUDA_VISIBLE_DEVICES"
        problems.append(Problem("parallelism.device", "no CUDA device is visible", "cuda", hint))
    if problems:
        raise ConfigError(problems)


def preview_error(plan: Plan) -> FluxexpError | None:
    """Like `preview`, for a point of a sweep: returns the error."""
    try:
        preview(plan)
    except FluxexpError as error:
        return error
    return None


def _require_metrics(plan: Plan) -> None:
    metrics = plan.config.metrics
    if not isinstance(metrics, NoMetricsConfig):
        from fluxexp.metrics.metric_set import require_metrics  # numpy and more

        require_metrics(metrics)


def _require_directory(plan: Plan) -> None:
    output = plan.config.output
    plan.directory.writer.check(plan.fingerprint_payload, output.overwrite)
    if not output.overwrite:
        plan.directory.writer.require_layout(output)
