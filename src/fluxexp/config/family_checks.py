"""Checks that sampling, output, dataset and optimizations fit the model family. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

from fluxexp.config.families import FAMILIES
from fluxexp.config.optimization_catalog import AUTO
from fluxexp.config.schema import FolderDatasetConfig, PromptsDatasetConfig, RunConfig, TableDatasetConfig
from fluxexp.errors import Problem


def _sampling_and_output_fit_the_family(config: RunConfig) -> Iterator[Problem]:
    family, sampling = FAMILIES[config.model.family], config.sampling
    if family.image == "unused" and sampling.strength < 1:
        what = f"has no effect, because {config.model.name} {family.purpose}"
        yield Problem("sampling.strength", what, sampling.strength, "use 1.0")
    if config.output.paste and not family.paints_masked_region:
        what = f"needs a model that fills a masked region, but {config.model.name} {family.purpose}"
        yield Problem("output.paste", what, True, "set output.paste=false")


def _dataset_fits_the_family(config: RunConfig) -> Iterator[Problem]:
    family, dataset = FAMILIES[config.model.family], config.dataset
    about = f"{config.model.name} {family.purpose}"
    if isinstance(dataset, PromptsDatasetConfig):
        if family.image == "required":
            hint = "use dataset=folder or dataset=table, or a text-to-image model (+experiment=text_to_image)"
            yield Problem("dataset", f"has no images, but {about}", "prompts", hint)
    elif isinstance(dataset, FolderDatasetConfig | TableDatasetConfig):
        if family.image == "unused":
            hint = "use dataset=prompts, which also reads the prompt column of a table"
            yield Problem("dataset", f"has images that would not be used: {about}", dataset.kind, hint)
        elif family.mask == "unused" and dataset.mask != "none":
            what = f"asks for masks that would not be used: {about}"
            yield Problem(
                "dataset.mask", what, dataset.mask or "null", "use dataset.mask=none: then masks are not read"
            )
        elif family.mask == "required" and dataset.mask == "none":
            hint = "use null for the dataset's own masks, or box, center, strokes or outpaint to draw masks"
            yield Problem("dataset.mask", f"leaves samples without a mask, but {about}", "none", hint)


def _mask_choices_agree(config: RunConfig) -> Iterator[Problem]:
    dataset = config.dataset
    if isinstance(dataset, FolderDatasetConfig | TableDatasetConfig) and dataset.mask == "none":
        masks = dataset.masks if isinstance(dataset, FolderDatasetConfig) else None
        for key, value in (("dataset.alpha_mask", dataset.alpha_mask), ("dataset.masks", masks)):
            if value:
                yield Problem(key, "has no effect with dataset.mask=none", value, "set only one of the two")


def _optimizations_fit_the_family(config: RunConfig) -> Iterator[Problem]:
    family = FAMILIES[config.model.family]
    for name, value in asdict(config.optimization).items():
        if value and value != AUTO and not family.supports(name):
            yield Problem(f"optimization.{name}", f"does not work with model.family={family.name}", value, "use false")


FAMILY_RULES: tuple[Callable[[RunConfig], Iterator[Problem]], ...] = (
    _sampling_and_output_fit_the_family,
    _dataset_fits_the_family,
    _mask_choices_agree,
    _optimizations_fit_the_family,
)
