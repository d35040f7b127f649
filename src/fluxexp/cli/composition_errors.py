"""Explain why Hydra cannot compose a config: which file, which line, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from fluxexp.cli.location import Place
from fluxexp.config.build import unknown_name
from fluxexp.errors import Problem

MISSING_FOLDER = r"provider=hydra\.searchpath in (?P<place>.*), path=(?P<path>.*) is not available"
"""Hydra's warning about a folder of the search path."""
COMPOSITION_ERRORS = (
    HydraException,
    OmegaConfBaseException,
    YAMLError,
    UnicodeDecodeError,
    OSError,
    ValueError,
    UserWarning,
    # OmegaConf and Hydra raise these for values of another kind than they expect.
    AssertionError,
    AttributeError,
    KeyError,
    TypeError,
    RecursionError,
)
"""All errors of Hydra's composition that the command or a file causes."""
_HINT = "`--info defaults` shows which files are composed"
_BOOLEAN = "item value in defaults : bool"
_BOOLEAN_HINT = "YAML reads on, off, yes and no as booleans: put the name of the file in quotes: `report: 'off'`"
_MISSING = re.compile(r"(?:In '(?P<file>[^']+)': )?Could not find '(?P<missing>[^']+)'")
_FULL_KEY = re.compile(r"^    full_key: (\S+)$", re.MULTILINE)
_OPTUNA = "hydra/sweeper/optuna"


def explain_composition(
    error: Exception, place: Place, configs: Callable[[str], Sequence[str]]
) -> list[Problem] | Problem:
    """Describe `error` for the user.

    Args:
        error: one of `COMPOSITION_ERRORS`.
        place: where the configs are.
        configs: lists the config files of a group, of the top folder for "".
    """
    if isinstance(error, MarkedYAMLError):
        return _yaml_problem(error)
    if isinstance(error, UnicodeDecodeError):
        files = [str(file) for file in (place.config_dir or place.directory).rglob("*.yaml") if not _is_utf8(file)]
        problems = [Problem(file, "is not encoded in UTF-8", hint="save it as UTF-8") for file in files]
        return problems or Problem("a config file", f"is not encoded in UTF-8: {error}", hint="save it as UTF-8")
    if isinstance(error, MissingConfigException):
        return _missing_problem(error, place.config_name, configs)
    message = " ".join(_message(error).split())
    if isinstance(error, UserWarning) and (folder := re.match(MISSING_FOLDER, message)):
        hint = "name an existing folder: hydra.searchpath=[file:///path/to/folder]"
        return Problem("hydra.searchpath", "is not a folder", folder["path"], hint)
    return Problem(_key(error) or "config", message, hint=_BOOLEAN_HINT if _BOOLEAN in message else _HINT)


def _yaml_problem(error: MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    what = error.problem or error.context or "is not valid"
    if mark is None:
        return Problem("config", f"is not valid YAML: {what}", hint=_HINT)
    place = f"line {mark.line + 1}, column {mark.column + 1}"
    return Problem(mark.name, f"is not valid YAML in {place}: {what}", hint=f"correct this line of {mark.name}")


def _missing_problem(
    error: MissingConfigException, config_name: str, configs: Callable[[str], Sequence[str]]
) -> Problem:
    message = _message(error)
    found = _MISSING.search(message)
    if found is None:  # the primary config
        names = [name for name in sorted(configs("")) if not name.startswith("_")]  # the others are Hydra's own
        hint = f"{unknown_name(config_name, names, 'configs')}; --config-dir DIR adds the configs in a folder"
        return Problem("--config-name", "is not a config", config_name, hint)
    missing, file = found["missing"], found["file"]
    if missing == _OPTUNA:
        return Problem("hydra/sweeper", "is not installed", "optuna", "pip install 'fluxexp[search]'")
    group, _, name = missing.rpartition("/")
    if names := sorted(configs(group)):
        return Problem(group, "is not a file of this group", name, unknown_name(name, names, "allowed"))
    hint = f"no config folder has a group {group!r}"
    return Problem(f"{file}.yaml" if file else "config", f"names {missing!r}, which does not exist", hint=hint)


def _is_utf8(file: Path) -> bool:
    try:
        file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    except OSError:
        return True  # another problem
    return True


def _key(error: BaseException) -> str | None:
    """The key that OmegaConf notes in its errors, whatever their class."""
    current: BaseException | None = error
    while current is not None:
        if (found := _FULL_KEY.search(str(current))) is not None:
            return found[1]
        current = current.__cause__ or current.__context__
    return None


def _message(error: BaseException) -> str:
    """The first message in the chain of causes. Hydra wraps some errors without a message."""
    current: BaseException | None = error
    while current is not None:
        if text := str(current).strip():
            return text.partition("\n    full_key")[0]
        current = current.__cause__ or current.__context__
    return type(error).__name__
