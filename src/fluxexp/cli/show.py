"""Commands that only show something: help, the composed config, and completions of a shell."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from hydra._internal.utils import get_args_parser, run_and_report

from fluxexp.cli.compose import check_shown
from fluxexp.cli.help_text import help_text
from fluxexp.cli.hydra_app import open_hydra
from fluxexp.cli.location import Place

_COMMAND = "fluxexp"
"""The command that a shell completes. Shells complete programs, not `python -m` modules."""


def show(place: Place, args: Namespace) -> None:
    """Show what `args` asks for.

    Raises:
        ConfigError: an override or a config file is wrong.
    """
    if args.shell_completion:
        _complete(place, args)
        return
    overrides = check_shown(place, args.overrides)
    with open_hydra(place) as app:
        if args.help:
            print(help_text(app, overrides))
        elif args.hydra_help:
            args.overrides = overrides
            app.hydra.hydra_help(config_name=place.config_name, args_parser=get_args_parser(), args=args)
        elif args.cfg:
            what: dict[str, Any] = {"cfg_type": args.cfg, "package": args.package, "resolve": args.resolve}
            run_and_report(lambda: app.hydra.show_cfg(config_name=place.config_name, overrides=overrides, **what))
        else:
            app.hydra.show_info(args.info, config_name=place.config_name, overrides=overrides)


def _complete(place: Place, args: Namespace) -> None:
    """Answer a shell: `-sc install=bash` prints its script, which calls `-sc query=bash` for completions."""
    sys.argv[0] = _COMMAND  # Hydra puts it into the script
    with open_hydra(place) as app:
        run_and_report(lambda: app.hydra.shell_completion(config_name=place.config_name, overrides=args.overrides))
