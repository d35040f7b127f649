"""Writes the trained models as two directories in the diffusers layout, in bfloat16."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxFillPipeline, FluxPipeline

from tools.train_tiny_fill.architecture import make_scheduler
from tools.train_tiny_fill.text import TextEncoders

SHARED = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
"""Parts that both models share. `tiny_dev` contains links to the files of `tiny_fill`."""


def export(target: Path, vae: Any, text: TextEncoders, transformers: dict[str, Any]) -> None:
    """Write `target/tiny_fill` and `target/tiny_dev`. Rounds the modules' weights to bfloat16."""
    parts = {
        "vae": vae,
        "text_encoder": text.clip,
        "text_encoder_2": text.t5,
        "tokenizer": text.clip_tokenizer,
        "tokenizer_2": text.t5_tokenizer,
        "scheduler": make_scheduler(),
    }
    fill = FluxFillPipeline(transformer=transformers["fill"], **parts)
    dev = FluxPipeline(transformer=transformers["dev"], **parts)
    for name, pipeline in (("tiny_fill", fill), ("tiny_dev", dev)):
        shutil.rmtree(target / name, ignore_errors=True)
        pipeline.to("cpu", torch.bfloat16).save_pretrained(target / name, safe_serialization=True)
    _share(target / "tiny_dev", target / "tiny_fill")


def _share(directory: Path, sibling: Path) -> None:
    """Replace the files of shared parts by links.

    Each file has its own link: wheels would not contain a linked directory, because the builder enters each directory
    only once.
    """
    for name in SHARED:
        for file in (sibling / name).iterdir():
            link = directory / name / file.name
            link.unlink()
            link.symlink_to(Path("..", "..", sibling.name, name, file.name))
