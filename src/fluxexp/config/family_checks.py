"""Checks that sampling, output, dataset and optimizations fit the model family. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import get_args

from fluxexp.config.families import FAMILIES, PIPELINE_FAMILIES, Family, Input
from fluxexp.config.optimization_catalog import AUTO
from fluxexp.config.schema import (
    DatasetConfig,
    FolderDatasetConfig,
    HubDatasetConfig,
    ImagesDatasetConfig,
    RunConfig,
    SamplingConfig,
    ShapesDatasetConfig,
    TableDatasetConfig,
    WebDatasetConfig,
)
from fluxexp.errors import Problem


def _sampling_and_output_fit_the_family(config: RunConfig) -> Iterator[Problem]:
    family, sampling = FAMILIES[config.model.family], config.sampling
    if "image" not in family.inputs and sampling.strength < 1:
        what = f"has no effect, because {config.model.name} {family.purpose}"
        yield Problem("sampling.strength", what, sampling.strength, "use 1.0")
    if config.output.paste and not family.paints_masked_region:
        what = f"needs a model that fills a masked region, but {config.model.name} {family.purpose}"
        yield Problem("output.paste", what, True, "set output.paste=false")


def _prompts_fit_the_family(config: RunConfig) -> Iterator[Problem]:
    family, sampling = FAMILIES[config.model.family], config.sampling
    about = f"{config.model.name} {family.purpose}"
    if not family.takes_negative_prompt:
        able = ", ".join(name for name in PIPELINE_FAMILIES if FAMILIES[name].takes_negative_prompt)
        for name, value, off in (
            ("negative_prompt", sampling.negative_prompt, None),
            ("true_cfg_scale", sampling.true_cfg_scale, 1.0),
        ):
            if value != off:
                what = f"would not be used: {about}, and {family.name} has no negative prompts"
                hint = f"use {'null' if off is None else off}, or a model of another family ({able})"
                yield Problem(f"sampling.{name}", what, value, hint)
    elif sampling.true_cfg_scale > 1 and sampling.negative_prompt is None and not config.dataset.can_set_prompts:
        yield without_negative_prompt(sampling)
    if sampling.prompt_2 is not None and not family.takes_second_prompt:
        yield Problem("sampling.prompt_2", f"would not be used: {about}", sampling.prompt_2, "use null")


def without_negative_prompt(sampling: SamplingConfig) -> Problem:
    """The problem of a second pass that no sample has a negative prompt for."""
    what = "has no effect without a negative prompt"
    hint = "set sampling.negative_prompt (empty text is allowed: sampling.negative_prompt=), or use 1.0"
    return Problem("sampling.true_cfg_scale", what, sampling.true_cfg_scale, hint)


def _dataset_fits_the_family(config: RunConfig) -> Iterator[Problem]:
    """The first input that the family needs and the dataset lacks, or the dataset has and the family cannot use."""
    family, dataset = FAMILIES[config.model.family], config.dataset
    if config.ip_adapter.path is not None:
        family = family.needing_references()
    about = f"{config.model.name} {family.purpose}"
    inputs: tuple[Input, ...] = get_args(Input)
    missing = [name for name in inputs if name in family.required - dataset.inputs]
    unused = [name for name in inputs if name in dataset.inputs - family.inputs and not dataset.is_drawn]
    if missing:
        what = f"does not give the input '{_noun(missing[0])}', but {about}"
        yield _input_problem(dataset, missing[0], what, _remedy_if_missing(dataset, missing[0]))
    elif unused:
        what = f"gives the input '{_noun(unused[0])}', which would not be used: {about}"
        yield _input_problem(dataset, unused[0], what, _remedy_if_unused(family, unused[0]))


def _noun(name: Input) -> str:
    return name.replace("_", " ")


def _input_problem(dataset: DatasetConfig, name: Input, what: str, hint: str) -> Problem:
    """A problem of the key that decides about input `name`."""
    key = _KEYS.get(name)
    is_main = isinstance(dataset, ImagesDatasetConfig) and dataset.images_are == key
    if isinstance(dataset, ImagesDatasetConfig) and (is_main or (name == "image" and dataset.images_are != "inputs")):
        return Problem("dataset.images_are", what, dataset.images_are, hint)
    if key is not None and hasattr(dataset, key):
        return Problem(f"dataset.{key}", what, getattr(dataset, key) or "null", hint)
    return Problem("dataset", what, dataset.kind, hint)


_KEYS: Mapping[Input, str] = {"mask": "mask", "control_image": "controls", "references": "references"}
"""The key of `dataset` that gives an input, if there is one."""


def _remedy_if_missing(dataset: DatasetConfig, name: Input) -> str:
    if isinstance(dataset, ImagesDatasetConfig) and dataset.images_are != "inputs" and name in ("image", "mask"):
        return "use dataset.images_are=inputs"
    if name not in ("control_image", "references"):
        return _REMEDY_IF_MISSING.get(name, "use another dataset or model")
    key = _KEYS[name]
    match dataset:
        case ShapesDatasetConfig():
            return f"use dataset.{key}={'outlines' if key == 'controls' else 'scenes'}"
        case FolderDatasetConfig():
            return f"set dataset.{key}=DIR, or use dataset.images_are={key} if the images are the {key}"
        case TableDatasetConfig() | HubDatasetConfig():
            return f"set dataset.{key}=COLUMN, or use dataset.images_are={key} if rows have no other image"
        case WebDatasetConfig():
            return f"set dataset.{key}=NAME (KEY.NAME.png), or use dataset.images_are={key} if the images are that"
        case _:
            return f"use dataset=folder or dataset=table with dataset.{key}, or a text-to-image model"


_REMEDY_IF_MISSING: Mapping[Input, str] = {
    "image": "use dataset=folder or dataset=table, or a text-to-image model (+experiment=text_to_image)",
    "mask": "use null for the dataset's own masks, or box, center, strokes or outpaint to draw masks",
}


def _remedy_if_unused(family: Family, name: Input) -> str:
    if name == "image" and family.required:
        return f"use dataset.images_are={_KEYS[next(iter(family.required))]} if the images are that, else another model"
    return _REMEDY_IF_UNUSED.get(name, "use another dataset or model")


_REMEDY_IF_UNUSED: Mapping[Input, str] = {
    "image": "use dataset=prompts, which also reads the prompt column of a table",
    "mask": "use dataset.mask=none: then masks are not read",
    "control_image": "use dataset.controls=null, or a Control model",
    "references": "use dataset.references=null, or a Kontext or Redux model",
}


def _mask_choices_agree(config: RunConfig) -> Iterator[Problem]:
    dataset = config.dataset
    if isinstance(dataset, ImagesDatasetConfig) and not dataset.has_masks:
        no_masks = "dataset.mask=none" if dataset.mask == "none" else f"dataset.images_are={dataset.images_are}"
        masks = dataset.masks if isinstance(dataset, FolderDatasetConfig) else None
        for key, value in (
            ("dataset.mask", None if dataset.mask == "none" else dataset.mask),
            ("dataset.alpha_mask", dataset.alpha_mask),
            ("dataset.masks", masks),
            ("dataset.invert_mask", dataset.invert_mask),
            ("dataset.mask_blur", dataset.mask_blur),
            ("dataset.mask_padding", dataset.mask_padding),
        ):
            if value or (value is not None and key == "dataset.mask_padding"):
                yield Problem(key, f"has no effect with {no_masks}", value, "set only one of the two")


def _images_have_one_meaning(config: RunConfig) -> Iterator[Problem]:
    dataset = config.dataset
    if isinstance(dataset, FolderDatasetConfig) and dataset.images_are != "inputs":
        value = getattr(dataset, dataset.images_are)
        if value is not None:
            what = f"has no effect with dataset.images_are={dataset.images_are}"
            yield Problem(f"dataset.{dataset.images_are}", what, value, "set only one of the two")


def _optimizations_fit_the_family(config: RunConfig) -> Iterator[Problem]:
    family = FAMILIES[config.model.family]
    for name, value in asdict(config.optimization).items():
        if value and value != AUTO and not family.supports(name):
            yield Problem(f"optimization.{name}", f"does not work with model.family={family.name}", value, "use false")


FAMILY_RULES: tuple[Callable[[RunConfig], Iterator[Problem]], ...] = (
    _sampling_and_output_fit_the_family,
    _prompts_fit_the_family,
    _dataset_fits_the_family,
    _mask_choices_agree,
    _images_have_one_meaning,
    _optimizations_fit_the_family,
)
