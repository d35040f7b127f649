"""Prompts that are longer than the text encoders read: counted, recorded, and said once."""

from __future__ import annotations

import pytest
import torch

from tests.models.conftest import load_tiny
from tests.program import FAKE, TINY, Program

LONG = "a large red star on grey " * 20


@pytest.mark.parametrize("name", ["tiny_fill", "tiny_dev"])
def test_what_is_cut_has_no_effect(name: str) -> None:
    model = load_tiny(name)
    longer = f"{LONG} and one more green ring"
    (cut, cut_longer) = model.cut_tokens([LONG, longer], None)
    assert cut is not None
    assert cut_longer is not None
    assert 0 < cut.t5 < cut_longer.t5
    assert 0 < cut.clip < cut_longer.clip
    (encoding, encoding_longer) = model.encode_prompts([LONG, longer], None)
    assert all(torch.equal(one, other) for one, other in zip(encoding, encoding_longer, strict=True))


def test_exactly_the_tokens_beyond_the_limit_are_counted() -> None:
    model = load_tiny("tiny_fill")
    prompt = "a red star"
    number = len(model.pipeline.tokenizer_2(prompt).input_ids)  # with the end token
    counted = [model.cut_tokens([prompt], limit) for limit in (number + 1, number, number - 1, number - 2)]
    assert [cut.t5 if cut else None for (cut,) in counted] == [0, 0, 1, 2]
    assert [cut.clip if cut else None for (cut,) in counted] == [0] * 4, "CLIP has its own limit"


def test_a_run_records_counts_and_says_it(program: Program) -> None:
    done = program.run("+experiment=fill", *TINY, "dataset.limit=2", "sampling.max_sequence_length=4")
    assert done.returncode == 0, done.stderr
    cut = [record.t5_tokens_cut or 0 for record in done.records.values()]
    assert min(cut) > 0
    assert {record.clip_tokens_cut for record in done.records.values()} == {0}
    assert done.summary["cut_prompts"] == {"num_t5": 2, "num_clip": 0, "most_t5_tokens": max(cut), "negative": None}
    assert done.stdout.count("the prompts of 2 images are too long for T5") == 1


def test_cut_tokens_of_negative_prompts_are_counted_apart(program: Program) -> None:
    texts = ("sampling.negative_prompt=a blue ring on grey", "sampling.prompt_2=x", "sampling.max_sequence_length=4")
    done = program.run(
        *("+experiment=true_cfg", "hydra.sweeper.params=null", "sampling.true_cfg_scale=2", *texts),
        *(*TINY, "dataset.limit=2"),
    )
    assert done.returncode == 0, done.stderr
    (cut,) = {record.negative_t5_tokens_cut for record in done.records.values()}
    assert cut is not None
    assert cut > 0
    assert {record.t5_tokens_cut for record in done.records.values()} == {0}, "T5 reads prompt_2"
    assert {record.negative_clip_tokens_cut for record in done.records.values()} == {0}
    assert done.summary["cut_prompts"]["num_t5"] == 0
    assert done.summary["cut_prompts"]["negative"] == {"num_t5": 2, "num_clip": 0, "most_t5_tokens": cut}
    assert done.stdout.count("the negative prompts of 2 images are too long for T5") == 1
    assert "the prompts of" not in done.stdout


def test_a_model_without_text_encoders_records_nothing(program: Program) -> None:
    done = program.run("+experiment=fill", *FAKE, "dataset.limit=1")
    (record,) = done.records.values()
    assert (record.t5_tokens_cut, record.clip_tokens_cut) == (None, None)
    assert done.summary["cut_prompts"] is None
    assert "too long" not in done.stdout
