"""The limit of T5's tokenizer, from the files of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fluxexp.config import RunConfig
from fluxexp.config.tokenizer_limit import UNLIMITED, tokenizer_limit

Compose = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ('{"model_max_length": 256}', 256),
        ('{"model_max_length": 1000000000000000019884624838656}', UNLIMITED),
        ("{}", UNLIMITED),
        ("[]", UNLIMITED),
        ("{", UNLIMITED),
        (None, UNLIMITED),
    ],
)
def test_the_limit_is_that_of_the_tokenizer_config(
    compose: Compose, tmp_path: Path, text: str | None, limit: int
) -> None:
    (tmp_path / "tokenizer_2").mkdir()
    if text is not None:
        (tmp_path / "tokenizer_2" / "tokenizer_config.json").write_text(text)
    assert tokenizer_limit(compose(f"model.path={tmp_path}").model) == limit


def test_models_without_files_have_no_limit(compose: Compose) -> None:
    assert tokenizer_limit(compose("model=tiny_fill").model) == 32
    assert tokenizer_limit(compose("model=tiny_fill", "model.path=org/model").model) == UNLIMITED
    assert tokenizer_limit(compose("model=fake").model) == UNLIMITED
