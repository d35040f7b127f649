"""Which images exist, compared with a simple rule."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.records import Record
from fluxexp.storage.manifest import merge
from fluxexp.storage.manifest_index import ManifestIndex
from tests.storage.memory_store import MemoryStore
from tests.storage.test_manifest import record

stems = st.sampled_from(["a", "b", "a.b", "c-1", ""])
suffixes = st.sampled_from([".png", ".webp", ".b.png", "", "-x.png"])
names = st.builds("{}{}".format, stems, suffixes).filter(bool)
sizes = st.integers(0, 3)


@st.composite
def attempts(draw: st.DrawFn) -> Record:
    key = draw(stems.filter(bool))
    if draw(st.integers(0, 3)) == 0:
        return record(key=key, status="failed", file=None, error="broken", attempt=draw(st.integers(1, 3)))
    name = draw(names) if draw(st.booleans()) else f"{key}.png"
    folder = draw(st.sampled_from(["images/", "images/", ""]))
    size = draw(st.none() | sizes)
    return record(key=key, file=f"{folder}{name}", bytes=size, attempt=draw(st.integers(1, 3)))


@given(st.lists(attempts(), max_size=8), st.dictionaries(names, sizes), st.booleans())
def test_an_image_exists_if_its_file_has_the_size_of_the_record(
    records: list[Record], files: dict[str, int], is_one_part: bool
) -> None:
    store = MemoryStore()
    index = ManifestIndex(store)
    for each in records:
        store.append_record("manifest/one.jsonl", each.to_json().encode())
        if not is_one_part:
            index.update()
    index.update()
    made = {
        key
        for key, found in merge(records).items()
        if found.file is not None and (name := found.file.rpartition("/")[2]) in files
        if found.status == "ok" and found.bytes in (None, files[name])
    }
    flags = index.find_images(files.items())
    assert {key for key, row in index.row_of.items() if flags[row]} == made
    assert not index.find_images([]).any()


def test_a_name_that_is_listed_twice_counts_once() -> None:
    store = MemoryStore()
    for key in "abc":
        store.append_record("manifest/one.jsonl", record(key=key, file=f"images/{key}.png", bytes=2).to_json().encode())
    index = ManifestIndex(store)
    index.update()
    found = [("c.png", 1), ("a.png", 2), ("c.png", 1), ("a.png", 2), ("x.png", 2)]
    assert np.array_equal(index.find_images(found), [True, False, False])
