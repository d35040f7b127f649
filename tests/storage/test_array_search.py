from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.storage.array_search import find_each

numbers = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9))


@given(numbers, numbers)
def test_each_number_is_found_at_its_first_place(wanted: list[int], known: list[int]) -> None:
    found = find_each(np.array(wanted, dtype=np.int64), np.array(known, dtype=np.int64))
    assert found.tolist() == [known.index(number) if number in known else -1 for number in wanted]
