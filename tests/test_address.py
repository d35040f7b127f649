from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.address import Address
from fluxexp.errors import StorageError

names = st.text("ab.-_é ", min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))
folders = st.lists(names, min_size=1, max_size=3).map("/".join)


@pytest.mark.parametrize("text", ["outputs/run", "/outputs/run", "../run", ".", "outputs//run/", "./run", "a:/b"])
def test_a_local_address_is_what_pathlib_makes_of_it(text: str) -> None:
    address, path = Address.of(text), Path(text)
    assert (str(address), address.name, str(address.parent)) == (str(path), path.name, str(path.parent))
    assert (str(address / "images/k.png"), str(address / "../b")) == (str(path / "images/k.png"), str(path / "../b"))
    assert address.local_path() == path
    assert address == Address.of(path)


@pytest.mark.parametrize("text", ["s3://bucket/outputs/run", "s3://bucket/outputs/run/"])
def test_an_object_address_keeps_its_scheme(text: str) -> None:
    address = Address.of(text)
    assert (address.scheme, address.path, address.name) == ("s3", "bucket/outputs/run", "run")
    assert str(address) == "s3://bucket/outputs/run"
    assert str(address.parent) == "s3://bucket/outputs"
    assert str(address / "images/k.png") == "s3://bucket/outputs/run/images/k.png"
    assert str(address / "../b") == "s3://bucket/outputs/b", "an object store takes dots literally"
    assert not address.is_local
    with pytest.raises(StorageError, match="not a local directory"):
        address.local_path()


@given(folders, folders, st.sampled_from(["", "/", "s3://"]))
def test_a_relative_address_leads_back(place: str, folder: str, start: str) -> None:
    run, root = Address.of(start + place), Address.of(start + folder)
    relative = run.relative_to(root)
    assert os.path.normpath((root / relative).path) == os.path.normpath(run.path)
    assert (root / relative).scheme == run.scheme


def test_places_in_different_stores_are_named_in_full() -> None:
    run, root = Address.of("s3://bucket/run"), Address.of("outputs")
    assert run.relative_to(root) == "s3://bucket/run"
    assert root / run.relative_to(root) == run


@pytest.mark.parametrize("name", ["", ".", "..", "../other", "/etc", "a/b"])
def test_a_name_that_leads_elsewhere_has_no_sibling(name: str) -> None:
    assert Address.of("outputs/run").sibling(name) is None


def test_a_sibling_is_beside() -> None:
    assert Address.of("outputs/run").sibling("other") == Address.of("outputs/other")
    assert Address.of("s3://bucket/run").sibling("other") == Address.of("s3://bucket/other")
