from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fluxexp.parallel.batching import BatchSizes, automatic_batch_size, is_batch_full, next_batch


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.integers(1, 5))
def test_batches_have_one_shape_keep_the_order_and_contain_every_item(shapes: list[str], size: int) -> None:
    waiting = list(enumerate(shapes))
    sizes = BatchSizes(lambda _: size)
    done = []
    while waiting:
        chosen = next_batch(waiting, lambda item: item[1], sizes)
        batch = [waiting[index] for index in chosen]
        full = is_batch_full(waiting, lambda item: item[1], sizes)
        assert len(batch) == size if full else chosen[0] == 0, "full batches first, else the first in line"
        assert len({shape for _, shape in batch}) == 1
        assert len(batch) <= size
        assert [number for number, _ in batch] == sorted(number for number, _ in batch)
        done += batch
        waiting = [item for index, item in enumerate(waiting) if index not in chosen]
    assert sorted(done) == list(enumerate(shapes))


def test_batch_sizes_are_chosen_once_and_halved_permanently() -> None:
    sizes = BatchSizes(lambda shape: 9 if shape == "big" else 4)
    assert (sizes["big"], sizes["small"]) == (9, 4)
    assert sizes.halve("big", failed=9)
    assert (sizes["big"], sizes["small"]) == (4, 4)
    assert not sizes.halve("big", failed=1), "one image that does not fit cannot be halved"


@given(st.integers(1, 100_000), st.none() | st.integers(0, 2**38))
def test_automatic_batch_size_is_in_range(tokens: int, free: int | None) -> None:
    size = automatic_batch_size(tokens, free)
    assert 1 <= size <= 16
    assert automatic_batch_size(2 * tokens, free) <= size, "larger images never go in larger batches"
    if free is not None:
        assert automatic_batch_size(tokens, free // 2) <= size


def test_automatic_batch_size_of_common_shapes() -> None:
    plenty = 40 << 30
    assert automatic_batch_size(4096 + 512, plenty) == 1
    assert automatic_batch_size(1024 + 512, plenty) == 5
    assert automatic_batch_size(1024 + 512, 2 << 30) == 1
    assert automatic_batch_size(64 + 64, None) == 8
