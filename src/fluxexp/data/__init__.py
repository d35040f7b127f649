"""Datasets, which read samples lazily, and the conversion between a sample's size and a model's. Imports no torch."""

from fluxexp.config import schema
from fluxexp.data.dataset import Dataset
from fluxexp.data.folder import Folder
from fluxexp.data.placement import Frame, Placed, expected_pixels, place, place_for, restore, working_size
from fluxexp.data.prompts_dataset import Prompts
from fluxexp.data.shapes import Shapes
from fluxexp.data.table import Table

__all__ = [
    "Dataset",
    "Frame",
    "Placed",
    "expected_pixels",
    "open_dataset",
    "place",
    "place_for",
    "restore",
    "working_size",
]


def open_dataset(config: schema.DatasetConfig) -> Dataset:
    """Open the dataset of `config`. Checks everything that can be checked without decoding images.

    Raises:
        ConfigError: the dataset does not exist, is empty, lacks required masks or columns, or contains a key twice.
    """
    match config:
        case schema.ShapesDatasetConfig():
            return Shapes(config)
        case schema.FolderDatasetConfig():
            return Folder(config)
        case schema.TableDatasetConfig():
            return Table(config)
        case schema.WebDatasetConfig():
            from fluxexp.data.web_dataset import WebDataset  # numpy arrays of an index, only if it is needed

            return WebDataset(config)
        case schema.HubDatasetConfig():
            from fluxexp.data.hub_dataset import HubDataset

            return HubDataset(config)
        case schema.PromptsDatasetConfig():
            return Prompts(config)
