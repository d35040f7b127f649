import threading
import time

import pytest

from fluxexp.metrics.memo import Memo


def test_threads_that_need_a_value_compute_it_once() -> None:
    memo, computed = Memo(), []

    def compute() -> str:
        time.sleep(0.02)
        computed.append(1)
        return "value"

    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(memo.once("key", compute))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["value"] * 8
    assert len(computed) == 1


def test_a_value_may_need_another_value() -> None:
    memo = Memo()
    assert memo.once("outer", lambda: memo.once("inner", lambda: 1) + 1) == 2


def test_a_failed_computation_is_repeated() -> None:
    memo = Memo()
    with pytest.raises(ZeroDivisionError):
        memo.once("key", lambda: 1 // 0)
    assert memo.once("key", lambda: 3) == 3
