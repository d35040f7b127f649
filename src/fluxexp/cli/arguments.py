"""The arguments of `python -m fluxexp`: Hydra's options, which may stand between overrides, and overrides."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser

from fluxexp.cli.exit import rank
from fluxexp.cli.sweep_part import OPTION, SweepPart
from fluxexp.errors import ConfigError, Problem
from fluxexp.version import __version__

PROGRAM = "python -m fluxexp"
_SHOWS = ("help", "hydra_help", "cfg", "info", "shell_completion")


def parse_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    """Read the command line, by default that of this process.

    Returns:
        what Hydra's parser returns. `config_dir` is an absolute path or None, `part` a SweepPart or None.

    Raises:
        ConfigError: an option is unknown, wrong or has no effect in fluxexp, or `--config-dir` is not a directory.
        SystemExit: `--version` was printed.
    """
    args = _parser().parse_intermixed_args(arguments)
    problems = _misused(args)
    if args.config_dir is not None:
        args.config_dir = Path(args.config_dir).expanduser().absolute()
        if not args.config_dir.is_dir():
            hint = "name the folder with your own config files, laid out like fluxexp's conf/"
            problems.append(Problem("--config-dir", "is not a directory", str(args.config_dir), hint))
    if problems:
        raise ConfigError(problems)
    args.part = None if args.part is None else SweepPart.parse(args.part)
    return args


def only_shows(args: Namespace) -> bool:
    """Whether the command shows something (`--help`, `--cfg`) and runs nothing."""
    return any(bool(getattr(args, name)) for name in _SHOWS)


def wants_sweep(args: Namespace) -> bool | None:
    """What the command says: `-m` is a sweep, `--run` is one run. None: the config decides."""
    return True if args.multirun else False if args.run or only_shows(args) else None


def _parser() -> ArgumentParser:
    parser = get_args_parser()
    parser.prog = Path(sys.argv[0]).name if not sys.argv[0].endswith(".py") else PROGRAM
    what = "make only part I of K of a sweep's points; fluxexp.submit --array uses it (docs/nodes.md)"
    parser.add_argument(OPTION, metavar="I/K", help=what)
    parser.error = _refuse  # type: ignore[method-assign]  # argparse would print once for each rank
    for action in parser._actions:
        if action.dest == "version":
            shown = rank() == 0  # other ranks print nothing
            action.version = f"fluxexp {__version__} (Hydra {hydra.__version__})" if shown else ""  # type: ignore[attr-defined]
    return parser


def _refuse(message: str) -> NoReturn:
    raise ConfigError(Problem("command line", message, hint=f"`{PROGRAM} --help` lists the options"))


def _misused(args: Namespace) -> list[Problem]:
    """Problems with options that Hydra has and that cannot work here, or not together."""
    problems = []
    if args.config_path is not None:
        hint = f"write --config-dir {args.config_path}, which adds a folder of configs to fluxexp's own"
        problems.append(Problem("--config-path", "would replace all configs of fluxexp", args.config_path, hint))
    if args.experimental_rerun is not None:
        hint = "start the same command again: fluxexp continues a run by itself"
        problems.append(Problem("--experimental-rerun", "is not supported", args.experimental_rerun, hint))
    commands = {f"--{name.replace('_', '-')}": getattr(args, name) for name in ("run", "multirun", *_SHOWS)}
    given = [name for name, value in commands.items() if value]
    if len(given) > 1:
        problems.append(Problem(" ".join(given), "exclude each other", hint="use one of them"))
    if args.resolve and not (args.cfg or args.help):
        problems.append(Problem("--resolve", "has no effect without --cfg", hint="add --cfg job"))
    if args.package is not None and not args.cfg:
        problems.append(Problem("--package", "has no effect without --cfg", args.package, "add --cfg job"))
    return problems
