"""Checks that negative prompts and second passes belong together, with what the samples of a dataset say themselves.

`config/family_checks.py` checks what the config alone can tell.
"""

from __future__ import annotations

from collections.abc import Iterator

from fluxexp.config.families import FAMILIES
from fluxexp.config.family_checks import without_negative_prompt
from fluxexp.errors import ConfigError, Problem
from fluxexp.plan.run_plan import Plan


def require_negative_prompts(plan: Plan) -> None:
    """Check that the family can use the negative prompts of the samples, and that a second pass has some.

    A single sample without a negative prompt is not a problem of the run: it fails when it is read.

    Raises:
        ConfigError: one of the two is not so.
    """
    if problems := list(_problems(plan)):
        raise ConfigError(problems)


def _problems(plan: Plan) -> Iterator[Problem]:
    model, sampling, columns = plan.config.model, plan.config.sampling, plan.dataset.sampling_columns
    family, path = FAMILIES[model.family], getattr(plan.config.dataset, "path", None)
    if not family.takes_negative_prompt:
        for name, number in (
            ("negative_prompt", columns.num_negative_prompts),
            ("true_cfg_scale", columns.num_second_passes),
        ):
            if number:
                what = f"has the column {name!r}, which would not be used: {model.name} {family.purpose}"
                what += f", and {family.name} has no negative prompts"
                yield Problem("dataset.path", what, path, "rename or remove the column")
    elif plan.makes_second_passes and sampling.negative_prompt is None and not columns.num_negative_prompts:
        if plan.point.makes_second_pass:
            yield without_negative_prompt(sampling)
        else:
            what = "has the column 'true_cfg_scale', which has no effect without a negative prompt"
            hint = "add a column negative_prompt, or set sampling.negative_prompt (empty text is allowed)"
            yield Problem("dataset.path", what, path, hint)


def unused_negative_prompt(plan: Plan) -> ConfigError | None:
    """The error of negative prompts that no second pass reads; None if all is well.

    It is none for a point of a sweep if another point has a second pass: this one is what that one is compared with.
    """
    if plan.makes_second_passes:
        return None
    what, hint = "has no effect, because sampling.true_cfg_scale is 1: there is no second pass", "use a scale above 1"
    if plan.config.sampling.negative_prompt is not None:
        value = plan.config.sampling.negative_prompt
        return ConfigError(Problem("sampling.negative_prompt", what, value, f"{hint}, or null"))
    if plan.dataset.sampling_columns.num_negative_prompts and FAMILIES[plan.config.model.family].takes_negative_prompt:
        path = getattr(plan.config.dataset, "path", None)
        what = f"has the column 'negative_prompt', which {what}"
        return ConfigError(Problem("dataset.path", what, path, f"{hint}, or rename or remove the column"))
    return None
