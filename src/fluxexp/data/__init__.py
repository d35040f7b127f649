"""Datasets of samples, read lazily, and the way between a sample's size and a model's. Imports no torch."""

from fluxexp.config import schema
from fluxexp.data.dataset import Dataset
from fluxexp.data.folder import Folder
from fluxexp.data.placement import Frame, Placed, expected_pixels, place, restore, working_size
from fluxexp.data.shapes import Shapes
from fluxexp.data.table import Prompts, Table

__all__ = ["Dataset", "Frame", "Placed", "expected_pixels", "open_dataset", "place", "restore", "working_size"]


def open_dataset(config: schema.DatasetConfig) -> Dataset:
    """The dataset of `config`, checked as far as that takes no reading of pictures.

    Raises:
        ConfigError: it is not there, empty, lacks columns or masks, or names two samples alike.
    """
    match config:
        case schema.ShapesDatasetConfig():
            return Shapes(config)
        case schema.FolderDatasetConfig():
            return Folder(config)
        case schema.TableDatasetConfig():
            return Table(config)
        case schema.PromptsDatasetConfig():
            return Prompts(config)
