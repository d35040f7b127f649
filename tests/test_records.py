from __future__ import annotations

import re
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from fluxexp.records import content_hash, slug, task_key, task_seed


@given(st.text())
def test_slugs_are_safe_file_names(text: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{0,48}", slug(text))


simple_texts = st.text(alphabet="aZ09_-", max_size=60) | st.text(alphabet="a-/ ä", max_size=60) | st.text()


@given(simple_texts, simple_texts, st.integers(0, 10**6), simple_texts)
def test_the_fast_ways_make_the_same_slugs_and_keys(sample: str, fingerprint: str, image: int, identity: str) -> None:
    ascii_text = unicodedata.normalize("NFKD", sample).encode("ascii", "ignore").decode()
    readable = re.sub("[^A-Za-z0-9_]+", "-", ascii_text).strip("-")[-48:].strip("-")
    assert slug(sample) == readable
    digest = content_hash([fingerprint, sample, image, identity])
    assert task_key(fingerprint, sample, image, identity) == (f"{readable}-{digest}" if readable else digest)


def test_keys_are_readable_and_stable() -> None:
    assert task_key("f", "photos/Köln 3", 0) == task_key("f", "photos/Köln 3", 0)
    assert task_key("f", "photos/Köln 3", 0).startswith("photos-Koln-3-")


@given(st.lists(st.tuples(st.text(), st.text(), st.integers(0, 3)), unique=True))
def test_keys_tell_fingerprints_samples_and_variants_apart(tasks: list[tuple[str, str, int]]) -> None:
    assert len({task_key(*task) for task in tasks}) == len(tasks)


@given(st.integers(0, 2**63 - 1), st.text(), st.integers(0, 9))
def test_seeds_fit_a_torch_generator_and_repeat(seed: int, key: str, image_index: int) -> None:
    assert 0 <= task_seed(seed, key, image_index) < 2**63
    assert task_seed(seed, key, image_index) == task_seed(seed, key, image_index)


def test_seeds_differ_by_each_of_their_sources() -> None:
    assert len({task_seed(0, "a", 0), task_seed(1, "a", 0), task_seed(0, "b", 0), task_seed(0, "a", 1)}) == 4


def test_seed_and_key_are_what_they_were_when_users_first_ran_them() -> None:
    assert task_seed(0, "a", 0) == 7756895851570414870
    assert task_key("f", "a", 0) == "a-4b56becd5e013939"
    assert content_hash({"b": 1, "a": [1.5, None]}) == "cf0c4895ed707baa"
    assert content_hash({"b": 1, "a": [1.5, None]}) == content_hash({"a": [1.5, None], "b": 1})
