"""The text of `--help`: commands, groups with their files, and keys with their values and the comments of conf/."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from fluxexp.cli.hydra_app import HydraApp, without_hydra
from fluxexp.cli.location import MAIN_CONFIG

_COMMANDS = """\
fluxexp runs FLUX experiments on all devices.

  accelerate launch -m fluxexp +experiment=fill                              a run
  accelerate launch -m fluxexp -m +experiment=fill sampling.steps=4,8,16     a sweep

Other commands (each has --help):

  python -m fluxexp.score DIR          scores the images of a run or a sweep, also with other metrics
  python -m fluxexp.compare RUN RUN    compares runs on the samples that they share
  python -m fluxexp.report DIR         writes report.html again
  python -m fluxexp.replay DIR         makes the W&B run again from the files of a run
  python -m fluxexp.calibrate          measures the magnitude ratios that optimization/step_cache=magcache uses
  python -m fluxexp.tracking.workspace creates a W&B workspace for fluxexp's figures

Options:

  -m                   run a sweep over all values: KEY=A,B
  --config-dir DIR     add your own configs, laid out like conf/
  --config-name NAME   compose your own primary config
  --cfg job            print the composed config; --info defaults: the files it comes from
  --version, --hydra-help, and shell completion: eval "$(fluxexp -sc install=bash)"
"""
_LINE = re.compile(r"^(?P<indent> *)(?P<key>[^\s#:]+):(?P<value>[^#]*)(?:#\s*(?P<comment>.*))?$")
_COLUMN = 44
"""Where comments begin."""
Comments = Mapping[str, str]


def help_text(app: HydraApp, overrides: Sequence[str]) -> str:
    """Make the help for the config with these overrides.

    Raises:
        ConfigError: it cannot be composed.
    """
    composed = app.compose(overrides)
    chosen = {str(group): str(file) for group, file in composed.hydra.runtime.choices.items()}
    folders = [Path(str(source.path)) for source in composed.hydra.runtime.config_sources if source.schema == "file"]
    values = OmegaConf.to_container(without_hydra(composed), resolve=False)
    assert isinstance(values, dict)
    comments = _all_comments(folders, app.place.config_name, chosen)
    parts = [
        _COMMANDS,
        "Groups and their files, chosen with GROUP=FILE (experiments are added: +experiment=FILE); * is chosen:\n",
        *_group_lines(app, chosen, folders),
        "\nKeys, set with GROUP.KEY=VALUE, and their values as composed:\n",
        *_key_lines({str(key): value for key, value in values.items()}, comments),
    ]
    return "\n".join(parts)


def _group_lines(app: HydraApp, chosen: Mapping[str, str], folders: Sequence[Path]) -> Iterator[str]:
    """A line for each group, and below it a line for each of its files, with the first comment in it."""
    for group in sorted(name for name in app.hydra.list_all_config_groups() if name.split("/")[0] != "hydra"):
        yield f"{group}:"
        for name in app.group_options(())(group):
            mark = "*" if chosen.get(group) == name else " "
            yield _with_comment(f"  {mark} {name}", _first_comment(folders, f"{group}/{name}.yaml"))


def _key_lines(values: Mapping[str, Any], comments: Comments, above: str = "", depth: int = 0) -> Iterator[str]:
    for key, value in values.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield _with_comment(f"{'  ' * depth}{key}:", comments.get(path))
            yield from _key_lines(value, comments, f"{path}.", depth + 1)
        else:
            text = OmegaConf.to_yaml({key: value}).strip() if not isinstance(value, list) else f"{key}: {_flow(value)}"
            yield _with_comment(f"{'  ' * depth}{text}", comments.get(path))


def _flow(items: Sequence[Any]) -> str:
    return f"[{', '.join(str(item) for item in items)}]"


def _with_comment(text: str, comment: str | None) -> str:
    return f"{text:<{_COLUMN}} # {comment}" if comment else text


def _all_comments(folders: Sequence[Path], config_name: str, chosen: Mapping[str, str]) -> dict[str, str]:
    """The comment of each dotted key: of the chosen file, after that of the file that it extends."""
    comments: dict[str, str] = {}
    for folder in folders:
        for group, name in chosen.items():
            for file in _with_extended(folder / group, name):
                for key, text in _comments(file):
                    path = f"{group.replace('/', '.')}.{key}"
                    comments[path] = f"{comments[path]}; {text}" if path in comments else text
        for name in (MAIN_CONFIG, config_name):
            if (file := folder / f"{name}.yaml").is_file():
                comments |= dict(_comments(file))
    return comments


def _with_extended(folder: Path, name: str) -> list[Path]:
    """A file of a group and, before it, the files of the same group in its defaults list."""
    file = folder / f"{name}.yaml"
    if not file.is_file():
        return []
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    entries = content.get("defaults", []) if isinstance(content, dict) else []
    names = [entry for entry in entries if isinstance(entry, str) and entry != "_self_"]
    return [*(path for extended in names for path in _with_extended(folder, extended)), file]


def _comments(file: Path) -> Iterator[tuple[str, str]]:
    """The dotted keys of a YAML file that have a comment in their line. In a defaults list: the groups."""
    above: list[tuple[int, str]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        match = _LINE.match(line.replace("- ", "  ", 1))
        if match is None:
            continue
        indent = len(match["indent"])
        above = [(depth, key) for depth, key in above if depth < indent] + [(indent, match["key"])]
        if match["comment"]:
            keys = [key for _, key in above if key != "defaults"]
            yield ".".join(keys), match["comment"].strip()


def _first_comment(folders: Sequence[Path], name: str) -> str | None:
    """The comment in the first lines of a file, up to its first sentence end."""
    file = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if file is None:
        return None
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line and "yaml-language-server" not in line:
            lines.append(line.removeprefix("#").strip())
    text = " ".join(lines)
    return re.split(r"(?<=[.?]) ", text)[0] or None
