"""The choice of an attention kernel by measurements, also among the kernels of optional packages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from fluxexp.models.kernels import attention

RIGHT = """
import torch.nn.functional as F

def flash_attn_func(query, key, value):
    assert query.stride(-1) == 1
    out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
    return out.transpose(1, 2)
"""
WITH_LSE = RIGHT.replace("return out.transpose(1, 2)", "return out.transpose(1, 2), None")
WRONG = RIGHT.replace("return out.transpose(1, 2)", "return 1.1 * out.transpose(1, 2)")
NOT_A_NUMBER = RIGHT.replace("return out.transpose(1, 2)", "return out.transpose(1, 2) / 0 * 0")
REFUSES = RIGHT.replace("assert query.stride(-1) == 1", "raise AssertionError('only on Blackwell')")
BROKEN = "raise ImportError('undefined symbol: _ZN2at4_ops')"
OUT_OF_MEMORY = RIGHT.replace("assert query.stride(-1) == 1", "import torch; raise torch.OutOfMemoryError('no room')")

Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Install]:
    """Put a module on the path, as if its package were installed."""
    for name in ("flash_attn_interface", "flash_attn", "flash_attn.cute"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def put(module: str, text: str) -> None:
        *above, name = module.split(".")
        directory = tmp_path.joinpath(*above)
        directory.mkdir(parents=True, exist_ok=True)
        for package in above:
            (tmp_path / package / "__init__.py").touch()
        (directory / f"{name}.py").write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)

    yield put
    for name in ("flash_attn_interface", "flash_attn", "flash_attn.cute"):
        sys.modules.pop(name, None)


def heads() -> torch.Tensor:
    """Queries, keys and values as one product gives them: (3, 1, 12, 2, 16), with gaps between rows."""
    product = torch.randn(1, 12, 3, 2, 16, generator=torch.Generator().manual_seed(0))
    return product.permute(2, 0, 1, 3, 4)


def test_without_packages_only_pytorchs_kernels_are_candidates(install: Install) -> None:
    assert attention.installed_attention() == list(attention.TORCH_KERNELS)


def test_installed_packages_are_candidates(install: Install) -> None:
    install("flash_attn_interface", RIGHT)
    install("flash_attn.cute", WITH_LSE)
    assert attention.installed_attention() == [*attention.TORCH_KERNELS, "_flash_3", "flash_attn_4"]
    query, key, value = heads()
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2)
    for name in ("native", "_flash_3", "flash_attn_4"):
        attend = attention.direct_attention(name)
        assert attend is not None
        torch.testing.assert_close(attend(query, key, value), expected)
    found = attention.measured(["native", "_flash_3", "flash_attn_4"], heads())
    assert all(isinstance(value, float) and value > 0 for value in found.values())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (WRONG, "its results differ from those of others by 0.1"),
        (NOT_A_NUMBER, "its results differ from those of others by nan"),
        (REFUSES, "AssertionError: only on Blackwell"),
        (BROKEN, "ImportError: undefined symbol"),
    ],
)
@pytest.mark.parametrize(
    ("name", "module"), [("_flash_3", "flash_attn_interface"), ("flash_attn_4", "flash_attn.cute")]
)
def test_a_kernel_that_does_not_work_is_left_out_with_the_reason(
    install: Install, name: str, module: str, text: str, why: str
) -> None:
    install(module, text)
    assert name in attention.installed_attention()
    found = attention.measured(["native", name], heads())
    assert str(found[name]).startswith(why)
    chosen, words = attention.choice(found)
    assert chosen == "native"
    assert f"{name} is left out: {why}" in words


def test_a_package_with_a_broken_parent_is_reported(install: Install) -> None:
    install("flash_attn.cute", RIGHT)
    install("flash_attn.__init__", BROKEN)
    assert "flash_attn_4" in attention.installed_attention()
    assert "undefined symbol" in str(attention.measured(["native", "flash_attn_4"], heads())["flash_attn_4"])


def test_running_out_of_memory_is_an_error_and_not_a_measurement(install: Install) -> None:
    install("flash_attn_interface", OUT_OF_MEMORY)
    with pytest.raises(torch.OutOfMemoryError):
        attention.measured(["native", "_flash_3"], heads())


def test_only_a_clearly_faster_kernel_replaces_an_earlier_one() -> None:
    assert attention.choice({"native": 1.0, "_native_cudnn": 0.98})[0] == "native"
    assert attention.choice({"native": 1.0, "_native_cudnn": 0.9})[0] == "_native_cudnn"
    assert attention.choice({"native": 1.0, "_native_cudnn": 0.9, "_flash_3": 0.8})[0] == "_flash_3"


@pytest.mark.gpu
def test_measurements_are_kept(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    install("flash_attn_interface", RIGHT)
    names = attention.installed_attention()
    first = attention.fastest_attention(names, 1024, 24, 128, torch.bfloat16, torch.device("cuda"))
    assert "_flash_3" in first[1]

    def refused(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(attention, "measured", refused)
    assert attention.fastest_attention(names, 1024, 24, 128, torch.bfloat16, torch.device("cuda")) == first
    install("flash_attn_interface", WITH_LSE + "# a newer version")
    with pytest.raises(AssertionError, match="measured again"):
        attention.fastest_attention(names, 1024, 24, 128, torch.bfloat16, torch.device("cuda"))
