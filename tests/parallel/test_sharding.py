from __future__ import annotations

import pytest

from fluxexp.parallel.sharding import static_share


def test_one_process_has_it_all() -> None:
    assert static_share([3, 1, 2]) == [3, 1, 2]
    assert static_share([]) == []


def test_what_is_no_list_would_go_to_every_rank_as_a_whole_and_is_refused() -> None:
    with pytest.raises(TypeError, match="range"):
        static_share(range(3))  # type: ignore[arg-type]
