"""Makes damaged and unusual copies of the embedded FLUX.1-Fill, as people have them on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fluxexp.config.model_paths import model_directory

WEIGHTS: Mapping[str, str] = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}
"""The file with the weights, by component."""
LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{7:064d}\nsize 23802932552\n"
QUANTO = {"weights_dtype": "int8", "quant_method": "quanto"}

Tensors = dict[str, torch.Tensor]


def embedded(name: str) -> Path:
    """Directory of an embedded model."""
    directory = model_directory(f"embedded:{name}")
    assert directory
    return directory


def copy_of_fill(path: Path) -> Path:
    """A sound copy of the embedded FLUX.1-Fill."""
    return shutil.copytree(embedded("tiny_fill"), path)


def weights_of(model: Path, component: str) -> Path:
    """The file with the weights of a component."""
    return model / component / WEIGHTS[component]


def change_json(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file in place."""
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def change_tensors(model: Path, component: str, change: Callable[[Tensors], Tensors]) -> None:
    """Write the weights of a component again, changed."""
    file = weights_of(model, component)
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def without(*names: str) -> Callable[[Tensors], Tensors]:
    """A change that leaves out tensors."""
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def renamed(prefix: str) -> Callable[[Tensors], Tensors]:
    """A change that gives all tensors a prefix, as files of other programs have it."""
    return lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def give_variant(model: Path, component: str, variant: str) -> None:
    """Rename the weights of a component to a variant."""
    file = weights_of(model, component)
    file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))


def shard(model: Path, component: str) -> list[Path]:
    """Split the weights of a component into two shards with an index. Returns the shards."""
    file = weights_of(model, component)
    tensors = load_file(file)
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    shards = []
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        target = file.with_name(f"{file.stem}-0000{number}-of-00002.safetensors")
        save_file({name: tensors[name] for name in part}, target, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, target.name)
        shards.append(target)
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    file.unlink()
    return shards


def make_hub_cache(root: Path, repository: str, commit: str) -> Path:
    """A hub cache with the embedded FLUX.1-Fill as branch `main` of `repository`. Returns its snapshot."""
    place = root / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    for file in embedded("tiny_fill").rglob("*"):
        if not file.is_file():
            continue
        name = file.relative_to(embedded("tiny_fill"))
        blob = place / "blobs" / name.as_posix().replace("/", "_")
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    return snapshot
