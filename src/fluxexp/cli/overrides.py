"""Overrides as users type them: parsed by Hydra, with text kept as it was typed, and the values of their sweeps."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import InputStream, OverrideLexer  # type: ignore[attr-defined]

from fluxexp.cli.explain import GroupOptions, quoted
from fluxexp.config import RunConfig
from fluxexp.config.build import unknown_name
from fluxexp.config.key_types import is_text
from fluxexp.errors import ConfigError, Problem

_NUMBER_LIKE = (OverrideLexer.INT, OverrideLexer.FLOAT, OverrideLexer.BOOL)
_SEPARATORS = (
    OverrideLexer.COMMA,
    OverrideLexer.POPEN,
    OverrideLexer.PCLOSE,
    OverrideLexer.BRACKET_OPEN,
    OverrideLexer.BRACKET_CLOSE,
    OverrideLexer.EQUAL,
)


def parse_overrides(texts: Sequence[str], options: GroupOptions | None = None) -> list[Override]:
    """Parse overrides.

    A value that looks like a number (`2024_05_01`, `1e3`, `true`) is quoted if its key holds text or is a group, so
    that it keeps its characters. Hydra's grammar would make it a number.

    Args:
        texts: as typed.
        options: gives the names of the files of a group; None if there are no groups yet.

    Raises:
        ConfigError: with a problem for each text that is not an override.
    """
    parser = OverridesParser.create()
    parsed, problems = [], []
    for text in texts:
        try:
            override = parser.parse_override(text)
            if _holds_text(override, options) and (kept := _with_quoted_numbers(text)) != text:
                override = parser.parse_override(kept)
                override = parser.parse_override(_as_simple_sweep(override))
        except HydraException:
            problems.append(Problem(text, "cannot be read as an override", hint=_how_to_quote(parser, text)))
        except ValueError as error:  # Python reads no integer of more than 4300 digits
            problems.append(Problem(f"{text[:40]}...", f"cannot be read as an override: {error}"))
        else:
            parsed.append(override)
    if problems:
        raise ConfigError(problems)
    return parsed


def params_as_overrides(params: Mapping[str, Any], options: GroupOptions) -> list[Override]:
    """The overrides that `hydra.sweeper.params` of a config file means, as Hydra's sweepers read them.

    Raises:
        ConfigError: one of them cannot be read.
    """
    try:
        return parse_overrides([f"{key}={value}" for key, value in params.items()], options)
    except ConfigError as error:
        hint = "quote it as on the command line"
        problems = [Problem(f"hydra.sweeper.params: {found.key}", found.reason, hint=hint) for found in error.problems]
        raise ConfigError(problems) from None


def merged(*parts: Sequence[Override]) -> list[Override]:
    """All overrides. Of several with the same key, the last one counts, as in Hydra's sweepers."""
    return list({override.get_key_element(): override for part in parts for override in part}.values())


def _holds_text(override: Override, options: GroupOptions | None) -> bool:
    key = override.key_or_group
    if override.is_range_sweep() or override.is_interval_sweep():
        return False
    return is_text(RunConfig, key) or bool(options is not None and options(key))


def _with_quoted_numbers(text: str) -> str:
    """An override with quotes around each value or list item that is one number or boolean."""
    key, _, value = text.partition("=")
    lexer = OverrideLexer(InputStream(value))
    lexer.removeErrorListeners()
    lexer.mode(OverrideLexer.VALUE_MODE)
    parts: list[list[Any]] = [[]]
    for token in lexer.getAllTokens():
        if token.type in _SEPARATORS:
            parts += [[token], []]
        else:
            parts[-1].append(token)
    return f"{key}={''.join(_with_quotes(part) for part in parts)}"


def _as_simple_sweep(override: Override) -> str:
    """`KEY=choice(A,B)` as `KEY='A','B'`, because Hydra forgets quotes inside of `choice`. Others as they are."""
    sweep = override.value()
    if not isinstance(sweep, ChoiceSweep) or sweep.simple_form or sweep.shuffle:
        return str(override.input_line)
    values = [QuotedString(item, Quote.single) if isinstance(item, str) else item for item in sweep.list]
    return f"{override.get_key_element()}={','.join(Override._get_value_element_as_str(value) for value in values)}"


def _with_quotes(tokens: Sequence[Any]) -> str:
    whole = "".join(token.text for token in tokens)
    solid = [token for token in tokens if token.type != OverrideLexer.WS]
    is_number_like = len(solid) == 1 and solid[0].type in _NUMBER_LIKE
    return f"'{solid[0].text}'" if is_number_like else whole


def _how_to_quote(parser: OverridesParser, text: str) -> str:
    """The command-line argument with a quoted value, if this is the remedy."""
    key, equals, value = text.partition("=")
    proposal = quoted(key, value)
    try:
        is_remedy = bool(equals) and parser.parse_override(proposal) is not None
    except HydraException:
        is_remedy = False
    if is_remedy:
        return f"quote the value twice, for the shell and for Hydra: {shlex.quote(proposal)}"
    return "write KEY=VALUE, and quote values with characters other than letters, digits and ._-/"


def choices(override: Override, options: GroupOptions) -> Iterator[str]:
    """The override once for each value of its sweep; as it is, if its values are not known before the sweep.

    Raises:
        ConfigError: a pattern matches no file.
    """
    value = override.value()
    key = override.get_key_element()
    if isinstance(value, Glob):
        names = value.filter(list(options(override.key_or_group)))
        if not names:
            given = ", ".join([*value.include, *(f"not {pattern}" for pattern in value.exclude)])
            hint = unknown_name(given, options(override.key_or_group), "files")
            raise ConfigError(Problem(key, "does not match a file of the group", given, hint))
        return (quoted(key, name) for name in names)
    if override.is_interval_sweep():
        return iter([f"{key}={value.start}"])  # type: ignore[union-attr]
    if is_swept(override):
        return (f"{key}={choice}" for choice in override.sweep_string_iterator())
    return iter([str(override.input_line)])


def is_swept(override: Override) -> bool:
    """Whether there are several values that are known before the sweep. Those of a search are not."""
    return override.is_choice_sweep() or (override.is_range_sweep() and override.is_discrete_sweep())


def other_values(overrides: Sequence[Override]) -> Iterator[tuple[str, Any]]:
    """Each value but the first of each swept key in a group. They need no composition: a sweep can have thousands."""
    for override in overrides:
        if "." in override.key_or_group and is_swept(override):
            for value in islice(override.sweep_iterator(), 1, None):
                yield override.key_or_group, Override._convert_value(value)
