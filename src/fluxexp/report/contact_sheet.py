"""Writes a contact sheet: per result its inputs, the result and the ground truth in a row, with the caption below."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from fluxexp.data import Dataset, open_dataset
from fluxexp.errors import SampleError
from fluxexp.image_formats import RESULT_FORMATS
from fluxexp.records import Record, Sample
from fluxexp.report.run_data import MAX_RECORDS
from fluxexp.storage.result_files import CONTACT_SHEET
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.run_reader import RunReader
from fluxexp.transparency import over_white

_BACKGROUND, _INK, _FAINT = "white", "#1a1a1a", "#8a8a8a"
_GAP = 8
_FONT_PX = 13
_CAPTION_LINES = 2


@dataclass(frozen=True, slots=True)
class _Row:
    """A result with its sample."""

    pictures: dict[str, Image.Image | None]
    """The picture of each column; None if the sample has no such picture."""
    caption: str


def write_contact_sheet(run: RunDirectory, rows: int = 8, cell_px: int = 160, across: int = 2) -> bool:
    """Write the contact sheet of `run` as `contact_sheet.png` into its directory.

    See `contact_sheet` for the arguments.

    Returns:
        whether there is one; False if the run has no image of a sample that can still be read.

    Raises:
        StorageError: it cannot be written, or `run` is not a run.
    """
    sheet = contact_sheet(run.reader, rows, cell_px, across)
    if sheet is None:
        return False
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    run.writer.write_derived(CONTACT_SHEET, buffer.getvalue())
    return True


def contact_sheet(reader: RunReader, rows: int = 8, cell_px: int = 160, across: int = 2) -> Image.Image | None:
    """The contact sheet of a run; None if the run has no image of a sample that can still be read.

    Args:
        reader: reader of the run.
        rows: maximum number of results. Of each sample only the image with index 0 is a candidate.
        cell_px: length of the longer side of each picture, in pixels.
        across: number of results side by side.

    Raises:
        StorageError: `reader` does not read a run.
    """
    dataset = open_dataset(reader.config().dataset)
    chosen = [row for row, _ in zip(_rows(reader, dataset), range(rows), strict=False)]
    if not chosen:
        return None
    columns = [name for name in chosen[0].pictures if any(row.pictures[name] for row in chosen)]
    blocks = [_draw_row(row, columns, cell_px) for row in chosen]
    return _arrange(blocks, across, columns, cell_px)


def _rows(reader: RunReader, dataset: Dataset) -> Iterator[_Row]:
    records = reader.outcomes().at_most(MAX_RECORDS).values()
    results = {r.sample_key: r for r in records if r.status == "ok" and r.variant == 0}
    for index in range(len(dataset)):
        record = results.get(dataset.key(index))
        if record is None:
            continue
        try:
            yield _row(reader, dataset.load(index), record)
        except (SampleError, OSError, ValueError, SyntaxError):
            continue  # the sample or the result cannot be read


def _row(reader: RunReader, sample: Sample, record: Record) -> _Row:
    assert record.file is not None
    with Image.open(io.BytesIO(reader.image(record.file) or b""), formats=RESULT_FORMATS) as image:
        result = over_white(image)
    pictures = {
        "input": sample.image,
        "control": sample.control_image,
        "reference": next(iter(sample.references), None),
        "mask": sample.mask,
        "result": result,
        "truth": sample.truth,
    }
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
    """`picture` scaled to the size of a cell. It keeps its aspect ratio."""
    scale = cell_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # Upsampling by an integer factor repeats pixels, so that the pixels of very small pictures stay visible.
    resample = Image.Resampling.LANCZOS if scale < 1 or scale % 1 else Image.Resampling.NEAREST
    return picture.convert("RGB").resize(size, resample)


def _arrange(blocks: Sequence[Image.Image], across: int, columns: Sequence[str], cell_px: int) -> Image.Image:
    """The sheet with `blocks` in reading order, `across` side by side, and the names of the columns above them."""
    across = min(across, len(blocks))
    down = -(-len(blocks) // across)  # rounded up
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
