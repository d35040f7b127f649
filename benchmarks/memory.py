"""Shows what `optimization.offload=auto` chooses for common GPU sizes, and the memory that each policy needs.

It computes both from the sizes of the weights, so it needs no GPU.

python benchmarks/memory.py [--layout flux_fill] [--size 1024] [--free 7 11 15 22.5 30 46 78]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fluxexp.config.model_layouts import LAYOUTS
from fluxexp.config.optimization_catalog import NONE
from fluxexp.errors import ModelError
from fluxexp.models.flux1.offloading import parts_of, work_for
from fluxexp.models.loading.random_weights import pipeline_without_weights
from fluxexp.models.offload.offload_plan import GIB, choose, offload_plans

_PLAIN = replace(NONE, hoist_constants=True, offload="auto")
_KINDS = {
    "bfloat16": _PLAIN,
    "T5 in int8": replace(_PLAIN, text_encoder_weights="int8"),
    "fp8 linears": replace(_PLAIN, fp8_linears=True),
    "both": replace(_PLAIN, fp8_linears=True, text_encoder_weights="int8"),
}


def main() -> None:
    """Print two tables: the memory that each policy needs, and the policy chosen for each amount of free memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=list(LAYOUTS), default="flux_fill")
    parser.add_argument("--size", type=int, default=1024, help="side of the images, in pixels")
    parser.add_argument(
        "--free", nargs="+", type=float, default=[7, 11, 15, 22.5, 30, 46, 78], help="free GiB of the GPUs"
    )
    args = parser.parse_args()
    pipeline = pipeline_without_weights(LAYOUTS[args.layout], torch.bfloat16)
    print(
        f"{args.layout}, {args.size} x {args.size}, in GiB\n\n"
        "| weights | parts | needed by policy |\n| --- | --- | --- |"
    )
    for name, asked in _KINDS.items():
        parts, work = parts_of(pipeline, asked), work_for(pipeline, asked, args.size**2)
        sizes = {"text": parts.whole_text, "transformer": parts.whole_transformer, "VAE": parts.vae}
        needed = {place.policy: place.needed_bytes for place in offload_plans(parts, work)}
        print(f"| {name} | {_listed(sizes)} | {_listed(needed)} |")
    print("\n| free | " + " | ".join(_KINDS) + " |\n" + "| --- " * (1 + len(_KINDS)) + "|")
    for free_gib in args.free:
        chosen = []
        for asked in _KINDS.values():
            parts, work = parts_of(pipeline, asked), work_for(pipeline, asked, args.size**2)
            try:
                chosen.append(choose("auto", int(free_gib * GIB), parts, work).words)
            except ModelError as error:
                chosen.append(str(error))
        print(f"| {free_gib:g} | " + " | ".join(chosen) + " |")


def _listed(sizes: Mapping[Any, int]) -> str:
    return ", ".join(f"{name} {size / GIB:.1f}" for name, size in sizes.items())


if __name__ == "__main__":
    main()
