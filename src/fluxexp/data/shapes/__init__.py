"""Captioned scenes of simple shapes: the built-in dataset, and the training data of the tiny models."""

from fluxexp.data.shapes.palette import COLORS, SHAPES
from fluxexp.data.shapes.scene import Scene, draw_scene
from fluxexp.data.shapes.shapes_dataset import Shapes

__all__ = ["COLORS", "SHAPES", "Scene", "Shapes", "draw_scene"]
