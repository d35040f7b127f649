from __future__ import annotations

import csv
import json
import math
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxexp.data import parquet
from fluxexp.data.keys import RowKeys
from fluxexp.data.masks import draw_mask
from fluxexp.data.row_values import read_size
from fluxexp.data.table_contents import require_numbers
from fluxexp.errors import SampleError
from tests.data.making import (
    array,
    assert_checks_index,
    assert_threads_agree,
    config_error,
    keys_of,
    noise,
    prompts,
    sample_error,
    spot,
    table,
    write,
)

Writer = Callable[[Path, Sequence[Mapping[str, Any]]], Path]
BOX = (4, 4, 12, 10)
ROW: dict[str, Any] = {"prompt": "a cat", "image": "in/a.png", "mask": "masks/a.png"}


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path = path.with_suffix(".csv")
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path = path.with_suffix(".parquet")
    names = list(dict.fromkeys(name for row in rows for name in row))
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path, row_group_size=2)
    return path


every_format = pytest.mark.parametrize("writer", [write_csv, write_jsonl, write_parquet])


def pictures(root: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        write(root / "in" / f"{name}.png", noise(24, 16, seed))
        write(root / "masks" / f"{name}.png", spot(24, 16, BOX))


@every_format
def test_rows_become_samples(writer: Writer, tmp_path: Path) -> None:
    pictures(tmp_path, "a", "b")
    rows = [
        {**ROW, "truth": "in/b.png", "key": "first", "size": "64x32"},
        {
            "prompt": "ein Käfer, 'rot'",
            "image": str(tmp_path / "in" / "b.png"),
            "mask": "masks/b.png",
            "key": "zweite ü",
        },
    ]
    dataset = table(writer(tmp_path / "t", rows))
    assert keys_of(dataset) == ["first", "zweite ü"]
    first, second = dataset.load(0), dataset.load(1)
    assert (first.key, first.prompt, first.size) == ("first", "a cat", (32, 64))
    assert (second.key, second.prompt, second.size) == ("zweite ü", "ein Käfer, 'rot'", None)
    assert (array(first.image) == array(noise(24, 16, 0))).all()
    assert (array(first.truth) == array(noise(24, 16, 1))).all()
    assert (array(first.mask) == array(spot(24, 16, BOX))).all()
    assert second.truth is None


@every_format
def test_relative_paths_start_at_the_table(writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "data", "a")
    path = writer(tmp_path / "data" / "t", [ROW])
    monkeypatch.chdir(tmp_path)
    assert table(path.relative_to(tmp_path)).load(0).image is not None
    monkeypatch.setenv("HOME", str(tmp_path / "data"))
    assert table(writer(tmp_path / "t", [{**ROW, "image": "~/in/a.png", "mask": "~/masks/a.png"}])).load(0).image


def test_the_format_of_a_table_does_not_change_its_keys(tmp_path: Path) -> None:
    rows = [
        ROW,
        {**ROW, "prompt": "ü\n2", "size": 512},
        {**ROW, "prompt": "no mask", "mask": None},
        {**ROW, "mask": "", "prompt": "none at all"},
    ]
    found = [keys_of(table(writer(tmp_path / "t", rows))) for writer in (write_csv, write_jsonl)]
    texts = [{name: None if value is None else str(value) for name, value in row.items()} for row in rows]
    found.append(keys_of(table(write_parquet(tmp_path / "t", texts))))
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 4


@every_format
def test_keys_do_not_depend_on_the_position_of_a_row(writer: Writer, tmp_path: Path) -> None:
    rows = [{**ROW, "prompt": f"cat {index}"} for index in range(5)]
    keys = keys_of(table(writer(tmp_path / "t", rows)))
    assert len(set(keys)) == 5
    assert keys_of(table(writer(tmp_path / "t", rows[::-1]))) == keys[::-1]
    assert keys_of(table(writer(tmp_path / "t", rows[:3] + rows))) == [
        *keys[:3],
        *(f"{key}-2" for key in keys[:3]),
        *keys[3:],
    ]
    assert keys_of(table(writer(tmp_path / "t", rows), limit=2)) == keys[:2]


@every_format
def test_keys_can_be_numbers(writer: Writer, tmp_path: Path) -> None:
    assert keys_of(table(writer(tmp_path / "t", [{**ROW, "key": number} for number in (7, 8, 0)]))) == ["7", "8", "0"]


@every_format
def test_duplicate_keys_are_an_error(writer: Writer, tmp_path: Path) -> None:
    path = writer(tmp_path / "t", [{**ROW, "key": key} for key in ("a", "b", "a")])
    message = config_error(table, path)
    assert f"dataset.path='{path}': has the key 'a' in rows 1 and 3" in message
    assert "give each row its own" in message


@every_format
def test_rows_can_have_no_key(writer: Writer, tmp_path: Path) -> None:
    rows = [{**ROW, "key": None}, {**ROW, "key": "b"}, {**ROW, "key": None}]
    keys = keys_of(table(writer(tmp_path / "t", rows)))
    assert keys[1:] == ["b", f"{keys[0]}-2"]


@given(st.lists(st.none() | st.fixed_dictionaries({"prompt": st.sampled_from("ab")}), max_size=30))
def test_generated_keys_are_unique(rows: list[dict[str, str] | None]) -> None:
    keys = RowKeys()
    for row in rows:
        keys.add(row)
    keys.finish()
    assert len(set(keys)) == len(rows)


def test_generated_keys_differ_from_given_keys() -> None:
    first = RowKeys()
    first.add({"prompt": "a"})
    keys = RowKeys()
    for row in ({"prompt": "a"}, {"key": f"{first[0]}-2"}, {"prompt": "a"}):
        keys.add(row)
    keys.finish()
    assert len(set(keys)) == 3


@every_format
def test_errors_for_missing_columns_suggest_the_nearest_name(writer: Writer, tmp_path: Path) -> None:
    path = writer(tmp_path / "t", [{"promt": "a cat", "images": "a.png"}])  # codespell:ignore
    message = config_error(table, path)
    assert f"dataset.path='{path}': has no column 'image'" in message
    assert "did you mean 'images'?" in message
    assert "did you mean 'promt'?" in message
    assert "dataset.prompt" in message
    assert "has no column 'mask'" in message
    assert "dataset.mask=box|center|strokes|outpaint" in message
    assert "'prompt'" not in config_error(table, path, prompt="p")
    assert "'mask'" not in config_error(table, path, mask="box")
    assert "'mask'" not in config_error(table, path, alpha_mask=True)


@every_format
def test_defaults_replace_missing_values(writer: Writer, tmp_path: Path) -> None:
    pictures(tmp_path, "a")
    rows = [ROW, {"prompt": "", "image": "in/a.png", "mask": ""}, {"prompt": None, "image": "in/a.png", "mask": None}]
    path = writer(tmp_path / "t", rows)
    dataset = table(path, prompt="anything", mask="center")
    for index in (1, 2):
        sample = dataset.load(index)
        assert sample.prompt == "anything"
        assert (array(sample.mask) == array(draw_mask("center", (24, 16), "any"))).all()
    assert dataset.load(0).prompt == "a cat"
    strict = table(path)
    assert f"{path}, row 2: has no prompt" in sample_error(strict, 1)
    assert "a.png: has no mask" in sample_error(table(path, prompt="anything"), 2)


@every_format
def test_a_bad_row_does_not_affect_others(writer: Writer, tmp_path: Path) -> None:
    pictures(tmp_path, "a")
    (tmp_path / "in" / "text.png").write_text("not an image")
    bad = [
        {**ROW, "image": "in/none.png"},
        {**ROW, "mask": "masks/none.png"},
        {**ROW, "image": "in/text.png"},
        {**ROW, "size": "large"},
        {**ROW, "size": "65x64"},
        {**ROW, "image": None},
        {**ROW, "truth": "in/none.png"},
    ]
    path = writer(tmp_path / "t", [*bad, {**ROW, "truth": "in/a.png"}])
    dataset = table(path)
    assert f"{tmp_path / 'in' / 'none.png'}: no such file" in sample_error(dataset, 0)
    assert f"{tmp_path / 'masks' / 'none.png'}: no such file" in sample_error(dataset, 1)
    assert "text.png: is not an image" in sample_error(dataset, 2)
    assert f"{path}, row 4: size 'large' is not WIDTHxHEIGHT" in sample_error(dataset, 3)
    assert f"{path}, row 5: size '65x64' is not allowed; use multiples of 16" in sample_error(dataset, 4)
    assert f"{path}, row 6: has no image" in sample_error(dataset, 5)
    assert "none.png: no such file" in sample_error(dataset, 6)
    assert dataset.load(7).prompt == "a cat"


@every_format
def test_opening_reads_no_image(writer: Writer, tmp_path: Path) -> None:
    path = writer(tmp_path / "t", [{**ROW, "image": f"none/{index}.png"} for index in range(7)])
    dataset = table(path)
    assert len(dataset) == 7
    assert len(set(keys_of(dataset))) == 7
    assert "6.png: no such file" in sample_error(dataset, 6)


@every_format
def test_loading_is_thread_safe_and_checks_the_index(writer: Writer, tmp_path: Path) -> None:
    pictures(tmp_path, *"abcdef")
    rows = [{"prompt": name * 9, "image": f"in/{name}.png", "mask": f"masks/{name}.png"} for name in "abcdef"]
    dataset = table(writer(tmp_path / "t", rows), limit=5)
    assert len(dataset) == 5
    assert_threads_agree(dataset)
    assert_checks_index(dataset)


@every_format
def test_a_table_without_rows_is_an_error(writer: Writer, tmp_path: Path) -> None:
    path = writer(tmp_path / "t", [ROW])
    if path.suffix == ".parquet":
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    else:
        path.write_text("prompt,image,mask\n" if path.suffix == ".csv" else "\n")
    assert f"dataset.path='{path}': contains no rows" in config_error(table, path)


def test_files_that_are_not_tables_are_refused(tmp_path: Path) -> None:
    assert "is not a file" in config_error(table, tmp_path)
    assert f"dataset.path='{tmp_path / 'none.csv'}': is not a file" in config_error(table, tmp_path / "none.csv")
    (tmp_path / "t.xlsx").touch()
    message = config_error(table, tmp_path / "t.xlsx")
    assert "is not a supported table" in message
    assert "use one of these file types: .csv, .jsonl, .parquet" in message
    (tmp_path / "t.parquet").write_text("no parquet")
    assert f"dataset.path='{tmp_path / 't.parquet'}': cannot be read" in config_error(table, tmp_path / "t.parquet")
    (tmp_path / "t.csv").touch()
    assert "contains no rows" in config_error(table, tmp_path / "t.csv")


# .csv


def test_a_csv_file_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    pictures(tmp_path, "a")
    (tmp_path / "t.CSV").write_bytes(
        b"\xef\xbb\xbf\r\nprompt,image,mask,,\r\n"
        b"\r\n"
        b'"two\r\nlines, with a comma and ""quotes""",in/a.png,masks/a.png,,\r\n'
        b"  \r\n"
        b"short,in/a.png\r\n"
        b"last without end,in/a.png,masks/a.png"
    )
    dataset = table(tmp_path / "t.CSV", mask="center")
    assert len(dataset) == 3
    assert [dataset.load(index).prompt for index in range(3)] == [
        'two\r\nlines, with a comma and "quotes"',
        "short",
        "last without end",
    ]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0")), min_size=1, max_size=6))
def test_any_text_round_trips_through_csv_and_jsonl(tmp_path: Path, texts: list[str]) -> None:
    rows = [{"prompt": text, "key": index} for index, text in enumerate(texts)]
    for writer in (write_csv, write_jsonl):
        if any(texts):
            dataset = prompts(writer(tmp_path / "t", rows))
            for index, text in enumerate(texts):
                if text:
                    assert dataset.load(index).prompt == text
                else:
                    assert "no prompt" in sample_error(dataset, index)


def test_a_row_with_too_many_values_fails_alone(tmp_path: Path) -> None:
    pictures(tmp_path, "a")
    path = tmp_path / "t.csv"
    path.write_text("prompt,image,mask\na cat, sleeping,in/a.png,masks/a.png\na cat,in/a.png,masks/a.png\n")
    dataset = table(path)
    assert f"{path}, row 1: has 4 values for 3 columns" in sample_error(dataset, 0)
    assert dataset.load(1).prompt == "a cat"


def test_a_row_that_is_not_utf8_fails_alone(tmp_path: Path) -> None:
    pictures(tmp_path, "a")
    rows = ["prompt,image,mask", "Käfer,in/a.png,masks/a.png", "bee,in/a.png,masks/a.png", "Bär,in/a.png,masks/a.png"]
    path = tmp_path / "t.csv"
    path.write_bytes("\n".join(rows).encode("latin-1"))
    dataset = table(path)
    assert f"{path}, row 1: is not UTF-8" in sample_error(dataset, 0)
    assert dataset.load(1).prompt == "bee"
    assert "row 3: is not UTF-8" in sample_error(dataset, 2)
    assert len(set(keys_of(dataset))) == 3
    path.write_text("\n".join(rows), encoding="utf-8")
    assert keys_of(table(path))[1] == dataset.key(1)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("prompt,image,mask\na,b,c\na,b,c\n".encode("utf-16"), "is not UTF-8"),
        (b'prompt,image,mask\na,b,c\na,"b,c\na,b,c\na,b,c\n', "opens a quote that is never closed, in row 2"),
        (b"prompt,image,image\na,b,c\n", "has two columns 'image'"),
        (b"prompt,image,mask\ra,b,c\r", "cannot be read"),
        (b'prompt,image,mask\na,b,c\n"' + b"long" * 50_000 + b'",b,c\n', "cannot be read"),
    ],
)
def test_a_csv_file_with_unclear_rows_is_refused(data: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    message = config_error(table, path)
    assert f"dataset.path='{path}': {expected}" in message


# .jsonl


@pytest.mark.parametrize(
    "bad",
    [
        b'{"prompt": "a cat", ',
        b"[1, 2]",
        b"null",
        b'{"prompt": "K\xe4fer"}',
        b'{"prompt": "half \\ud83d of a pair", "image": "in/a.png", "mask": "masks/a.png"}',
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("keyed", [False, True])
def test_a_bad_line_fails_only_its_sample(bad: bytes, keyed: bool, tmp_path: Path) -> None:
    pictures(tmp_path, "a")
    good = [json.dumps({**ROW, **({"key": f"k{index}"} if keyed else {})}).encode() for index in range(2)]
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([bad, good[0], b"", bad, good[1], b"  "]))
    dataset = table(path)
    assert len(dataset) == len(set(keys_of(dataset))) == 4
    for index in (0, 2):
        assert f"{path}, row {index + 1}: " in sample_error(dataset, index)
    for index in (1, 3):
        assert dataset.load(index).prompt == "a cat"


def test_a_jsonl_file_can_escape_characters(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "a \\ud83d\\ude00 \\u00e4"}\n')
    assert prompts(path).load(0).prompt == "a \N{GRINNING FACE} ä"


def test_columns_of_a_jsonl_file_come_from_all_rows(tmp_path: Path) -> None:
    pictures(tmp_path, "a")
    path = write_jsonl(tmp_path / "t", [{"image": "in/a.png", "mask": None, "prompt": "x"}, {**ROW, "key": "late"}])
    dataset = table(path)
    assert dataset.key(1) == "late"
    assert dataset.load(1).mask is not None
    assert "no mask" in sample_error(dataset, 0)
    assert "has no column 'mask'" in config_error(table, write_jsonl(tmp_path / "t", [{**ROW, "mask": None}]))


def test_a_row_with_values_that_are_not_text_fails_alone(tmp_path: Path) -> None:
    pictures(tmp_path, "a")
    rows = [
        {**ROW, "prompt": ["a"]},
        {**ROW, "image": {"bytes": ""}},
        {**ROW, "prompt": 5},
        {**ROW, "prompt": math.nan},
    ]
    path = write_jsonl(tmp_path / "t", rows)
    dataset = table(path)
    assert f"{path}, row 1: prompt is a list, but must be text" in sample_error(dataset, 0)
    assert f"{path}, row 2: image is a dict" in sample_error(dataset, 1)
    assert dataset.load(2).prompt == "5"
    assert "row 4: has no prompt" in sample_error(dataset, 3)


def test_a_table_that_is_deleted_later_fails_each_sample(tmp_path: Path) -> None:
    for writer in (write_csv, write_jsonl):
        path = writer(tmp_path / "t", [ROW, ROW])
        dataset = table(path)
        path.write_text("")
        assert "row 2: changed after it was opened" in sample_error(dataset, 1)
        path.unlink()
        assert "row 2: " in sample_error(dataset, 1)


# .parquet


def test_images_inside_a_parquet_file_are_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t", [{**ROW, "image": {"bytes": b"1234", "path": None}}])
    message = config_error(table, path)
    assert f"dataset.path='{path}': has struct<bytes: binary, path: null> in column 'image'" in message
    assert "dataset=hub reads images in parquet" in message


def test_unused_columns_of_a_parquet_file_are_not_read(tmp_path: Path) -> None:
    pictures(tmp_path, "a")
    rows = [{**ROW, "embedding": b"damaged" * 99, "size": 64.0}, {**ROW, "embedding": None, "size": None}]
    path = write_parquet(tmp_path / "t", rows)
    column = pq.ParquetFile(path).metadata.row_group(0).column(len(ROW))
    assert column.path_in_schema == "embedding"
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    with pytest.raises(OSError, match="deserialize"):
        pq.read_table(path)
    dataset = table(path)
    assert dataset.load(0).size == (64, 64)
    assert dataset.load(1).size is None


def test_categories_of_a_parquet_file_are_text(tmp_path: Path) -> None:
    pictures(tmp_path, "a")
    columns = {name: pa.array([text, text]).dictionary_encode() for name, text in ROW.items()}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert table(tmp_path / "t.parquet").load(1).prompt == "a cat"


# size


@pytest.mark.parametrize(
    ("value", "expected"),
    [("64x32", (32, 64)), (" 64 X 32 ", (32, 64)), ("64*32", (32, 64)), ("48", (48, 48)), (48, (48, 48)), (None, None)],
)
def test_sizes(value: object, expected: object) -> None:
    assert read_size(value, "here") == expected


@pytest.mark.parametrize("value", ["", "x", "64x", "64x32x16", "-64x32", "0x16", "8", "64.5", [64, 32], "1" * 5000])
def test_invalid_sizes_are_sample_errors(value: object) -> None:
    with pytest.raises(SampleError, match="here: size"):
        read_size(value, "here")


def test_a_guidance_that_is_too_large_for_a_float_is_a_failed_sample() -> None:
    """JSON has integers of any size. Found by `make fuzz`."""
    with pytest.raises(SampleError, match="is not a number from 0 to 100"):
        require_numbers({"guidance": 10**400}, "row 1")


def test_a_large_parquet_file_stays_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"p{number}", "key": f"k{number}"} for number in range(70)]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)
    monkeypatch.setattr(parquet, "MEMORY_BYTES", 0)
    dataset = prompts(path)
    assert [dataset.load(index).prompt for index in (69, 0, 35, 9, 10)] == ["p69", "p0", "p35", "p9", "p10"]
    assert keys_of(dataset) == [row["key"] for row in rows]
    assert_threads_agree(dataset)
    pq.write_table(pa.Table.from_pylist(rows[:20]), path)
    assert "changed after it was opened" in sample_error(dataset, 0)


def test_keys_of_many_rows_take_little_memory() -> None:
    keys = RowKeys()
    tracemalloc.start()
    for number in range(20_000):
        keys.add({"prompt": f"a photo of number {number}"})
    keys.finish()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / 20_000 < 40
    assert len(set(keys)) == 20_000
