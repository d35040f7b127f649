"""`python -m fluxexp.export RUN ... --to FORMAT`: copy images, prompts, settings and scores for other programs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from fluxexp.address import Address
from fluxexp.errors import FluxexpError, StorageError
from fluxexp.export.exported_rows import PARTS, ExportedRows, Part
from fluxexp.export.openai_batch_export import write_openai_batch
from fluxexp.export.parquet_export import require_pyarrow, write_hf, write_parquet
from fluxexp.export.target_directory import target_directory
from fluxexp.export.webdataset_export import write_webdataset

FORMATS: Mapping[str, Callable[[ExportedRows, Path], int]] = {
    "parquet": write_parquet,
    "webdataset": write_webdataset,
    "hf": write_hf,
    "openai-batch": partial(write_openai_batch, inline=False),
}
_EXPORTS = Path("exports")


def main() -> None:
    """Export runs. Exit code 2 if the command is wrong or something cannot be read or written."""
    args = _parser().parse_args()
    try:
        if args.b64 and args.to != "openai-batch":
            raise StorageError(f"--b64 is for --to openai-batch, not for --to {args.to}")
        write = partial(write_openai_batch, inline=True) if args.b64 else FORMATS[args.to]
        target = _target(args)
        if args.to in ("parquet", "hf"):
            require_pyarrow()
        with target_directory(target) as folder:
            rows = ExportedRows.read(args.run, args.parts)
            number = write(rows, folder)
            if not number:
                raise StorageError(
                    f"there is nothing to export in {', '.join(map(str, args.run))}: no image is finished"
                )
    except FluxexpError as error:
        print(f"fluxexp: {str(error).strip()}", file=sys.stderr)
        sys.exit(2)
    print(f"{number} results of {len(rows.runs)} run{'s' * (len(rows.runs) != 1)}")
    print(target)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fluxexp.export", description=__doc__)
    parser.add_argument(
        "run", type=Address.of, nargs="+", metavar="RUN", help="directory of a run, or of a sweep (all its points)"
    )
    parser.add_argument("--to", required=True, choices=FORMATS, help="format of the copy")
    parser.add_argument(
        "--output", metavar="DIR", help=f"new local directory (default: {_EXPORTS}/NAME-FORMAT of the first run)"
    )
    parser.add_argument(
        "--with", dest="parts", type=_parts, default=PARTS, metavar="LIST", help=f"default: {','.join(PARTS)}"
    )
    parser.add_argument("--b64", action="store_true", help="openai-batch: images as base64 in the lines, not as files")
    return parser


def _parts(text: str) -> Sequence[Part]:
    wanted = text.split(",")
    if unknown := [name for name in wanted if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(PARTS)}")
    return [name for name in PARTS if name in wanted]


def _target(args: argparse.Namespace) -> Path:
    if args.output is None:
        return _EXPORTS / f"{args.run[0].name}-{args.to}"
    if not Address.of(args.output).is_local:
        raise StorageError(f"--output={args.output} is not a local directory: export to one, and copy it from there")
    return Path(args.output).expanduser()


if __name__ == "__main__":
    main()
