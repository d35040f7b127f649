"""A contact sheet: one row a sample, with input, mask, result and truth side by side, and the caption under them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from PIL import Image, ImageDraw, ImageFont

from fluxexp.config import RunConfig, build
from fluxexp.data import Dataset, open_dataset
from fluxexp.errors import SampleError, StorageError
from fluxexp.records import Record, Sample
from fluxexp.storage.run_directory import RunDirectory

_BACKGROUND, _INK, _FAINT = "white", "#1a1a1a", "#8a8a8a"
_GAP = 8
_FONT_PX = 13
_CAPTION_LINES = 2


@dataclass(frozen=True, slots=True)
class _Row:
    """A result with its sample: pictures by column, None where the sample has none."""

    pictures: dict[str, Image.Image | None]
    caption: str


def contact_sheet(run: Path, rows: int = 8, cell_px: int = 160, across: int = 2) -> Image.Image:
    """Up to `rows` results of the run directory `run`, each picture `cell_px` pixels at its longer side.

    Raises:
        StorageError: `run` is not a run's directory, or holds no result.
    """
    config = _config(run)
    dataset = open_dataset(config.dataset)
    chosen = [row for row, _ in zip(_rows(RunDirectory(run), dataset), range(rows), strict=False)]
    if not chosen:
        raise StorageError(f"{run} holds no finished image")
    columns = [name for name in chosen[0].pictures if any(row.pictures[name] for row in chosen)]
    blocks = [_draw_row(row, columns, cell_px) for row in chosen]
    return _arrange(blocks, across, columns, cell_px)


def _config(run: Path) -> RunConfig:
    try:
        values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise StorageError(f"{run} is not the directory of a run: {error}") from error
    return build(RunConfig, values)


def _rows(directory: RunDirectory, dataset: Dataset) -> Iterator[_Row]:
    results = {r.sample_key: r for r in directory.outcomes().values() if r.status == "ok" and r.variant == 0}
    for index in range(len(dataset)):
        record = results.get(dataset.key(index))
        if record is None:
            continue
        try:
            sample = dataset.load(index)
        except SampleError:
            continue  # its file went after the run; the result stands, but there is nothing to set beside it
        yield _row(directory, sample, record)


def _row(directory: RunDirectory, sample: Sample, record: Record) -> _Row:
    assert record.file is not None
    with Image.open(directory.path / record.file) as image:
        result = image.convert("RGB")
    pictures = {"input": sample.image, "mask": sample.mask, "result": result, "truth": sample.truth}
    return _Row(pictures, sample.prompt)


def _draw_row(row: _Row, columns: Sequence[str], cell_px: int) -> Image.Image:
    width = len(columns) * (cell_px + _GAP) - _GAP
    block = Image.new("RGB", (width, cell_px + _CAPTION_LINES * (_FONT_PX + 4) + _GAP), _BACKGROUND)
    for position, name in enumerate(columns):
        picture = row.pictures[name]
        if picture is not None:
            block.paste(_fit(picture, cell_px), (position * (cell_px + _GAP), 0))
    font = ImageFont.load_default(_FONT_PX)
    per_line = max(1, int(width / font.getlength("x")))
    lines = textwrap.wrap(row.caption, per_line, max_lines=_CAPTION_LINES, placeholder=" …")
    ImageDraw.Draw(block).multiline_text((0, cell_px + 2), "\n".join(lines), fill=_INK, font=font)
    return block


def _fit(picture: Image.Image, cell_px: int) -> Image.Image:
    """`picture` at the size of a cell, in its own proportions; a small one is enlarged pixel by pixel."""
    scale = cell_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    resample = Image.Resampling.LANCZOS if scale < 1 or scale % 1 else Image.Resampling.NEAREST
    return picture.convert("RGB").resize(size, resample)


def _arrange(blocks: Sequence[Image.Image], across: int, columns: Sequence[str], cell_px: int) -> Image.Image:
    """Blocks in reading order, `across` beside each other, the columns named above."""
    across = min(across, len(blocks))
    down = -(-len(blocks) // across)
    width, height = blocks[0].size
    head = _FONT_PX + 2 * _GAP
    sheet = Image.new("RGB", (across * (width + 2 * _GAP) + _GAP, head + down * (height + _GAP)), _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_PX)
    for column in range(across):
        left = _GAP + column * (width + 2 * _GAP)
        for position, name in enumerate(columns):
            draw.text((left + position * (cell_px + _GAP), _GAP), name, fill=_FAINT, font=font)
    for number, block in enumerate(blocks):
        row, column = divmod(number, across)
        sheet.paste(block, (_GAP + column * (width + 2 * _GAP), head + row * (height + _GAP)))
    return sheet
