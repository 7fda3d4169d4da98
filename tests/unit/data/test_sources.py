from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefopt.data.sources import fingerprint, read_rows
from prefopt.errors import DataError, EnvironmentFault
from prefopt.recipe.schema import DataSpec

from .conftest import CONTAINERS

ROWS = [
    {"prompt": "Wo ist der Bär?\u2028Zeile", "completion": "Im Wald 👩‍👩‍👧.", "note": 'a,"b"\nc'},
    {"prompt": "e\u0301 \u202eabc", "completion": "\té", "note": " x "},
]


def read(path: object, **options: object) -> list[dict]:
    return [row.row for row in read_rows(DataSpec(path=str(path), **options), lambda line: None)]


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_back_the_same_rows(write, container):
    assert read(write(container, ROWS)) == ROWS


@pytest.mark.parametrize("container", CONTAINERS)
def test_message_lists_survive_every_container(write, container):
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}]
    assert read(write(container, rows)) == rows


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.fixed_dictionaries({"prompt": text, "completion": text}), min_size=1, max_size=4))
@pytest.mark.parametrize("container", ["rows.jsonl", "rows.csv.gz", "rows.parquet", "stream.arrow"])
def test_any_unicode_text_survives(write, container, rows):
    assert read(write(container, rows)) == rows


def test_rows_are_numbered_by_line_and_blank_lines_count(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n\n{"text": "b"}\n')
    rows = list(read_rows(DataSpec(path=str(tmp_path / "a.jsonl")), lambda line: None))
    assert [(row.number, row.where.endswith(f"a.jsonl, line {row.number}")) for row in rows] == [(1, True), (3, True)]


def test_max_samples_counts_rows_of_the_source(write):
    assert len(read(write("rows.jsonl", ROWS * 5), max_samples=3)) == 3


@pytest.mark.parametrize("container", ["rows.json", "rows.jsonl", "rows.csv", "rows.parquet", "stream.arrow"])
@pytest.mark.parametrize("gz", ["", ".gz"])
def test_a_file_torn_anywhere_inside_a_row_is_a_data_error(write, container, gz):
    path = write(container + gz, [{"text": 'a "word" and more ' * 9} for _ in range(40)])
    whole = path.read_bytes()
    for size in (len(whole) // 2 + 5, len(whole) - 3):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_an_empty_file_has_no_rows_where_that_is_a_valid_file(tmp_path, gz):
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / (name + gz)).write_bytes(b"")
        assert read(tmp_path / (name + gz)) == []
    for name in ("a.json", "a.parquet", "a.arrow"):
        (tmp_path / (name + gz)).write_bytes(b"")
        with pytest.raises(DataError, match=name):
            read(tmp_path / (name + gz))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"text": "a"}\n{"text": "b\n', "line 2: not JSON"),
        (b'{"text": "a"}\n[1]\n', "line 2: expected an object with columns, found a list"),
        (b'{"text": "a"}\nnull\n', "line 2: expected an object with columns, found null"),
        (b'{"text": "\xff"}\n', "line 1: not UTF-8"),
        (b'{"text": "a"}\n\0\0\0\0', "line 2: not JSON"),
        (b'{"text": "a"}\n{"text": "b\\u0000"}\n', "line 2: column 'text' contains a NUL"),
        (b'{"text": [{"content": "b\\ud800"}]}\n', "line 1: column 'text[0].content' contains half of a surrogate"),
        (b'{"n": ' + b"1" * 5000 + b"}\n", "line 1: not JSON that can be read"),
        (b"[" * 100_000, "line 1: not JSON that can be read"),
        ('{"text": "a"}'.encode("utf-16"), "line 1: not UTF-8"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, content, says):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"{path}, {says}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", b'[{"text": "a"},\n {"text": ]', "line 2"),
        ("a.json", b"\xff\xfe[", "not UTF-8"),
        ("a.json", b"3", "found int"),
        ("a.csv", b'text\n"torn', "row 1: not CSV"),
        ("a.csv", b"prompt,completion\na,b\nc\n", "row 2: 1 fields, the header has 2"),
        ("a.csv", b"prompt,completion\na,b,c\n", "row 1: 3 fields, the header has 2"),
        ("a.csv", b"text,text\na,b\n", "names a column twice"),
        ("a.csv", b"text\n\xff\n", "not UTF-8"),
        ("a.jsonl.gz", b"plain", "damaged gzip"),
        ("a.parquet", b"PAR1 no", "damaged or of another kind"),
        ("a.pkl", b"", "unknown kind of file"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(path) in str(caught.value) and says in str(caught.value)


def test_a_row_of_ten_megabytes_and_a_conversation_of_a_hundred_thousand_turns(write):
    long = [{"text": "ä " * 5_000_000}]
    assert read(write("rows.csv", long)) == long
    turns = [{"messages": [{"role": "user", "content": "x"}] * 100_000}]
    assert read(write("rows.jsonl", turns)) == turns


class TestFolders:
    def test_the_files_of_the_split_are_read_in_order_of_their_names(self, tmp_path):
        for name in ("train-00001-of-00002", "train-00000-of-00002", "test-00000-of-00001"):
            (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
        (tmp_path / "README.md").write_text("no data")
        (tmp_path / "dataset_infos.json").write_text("{}")
        assert [row["text"][:11] for row in read(tmp_path)] == ["train-00000", "train-00001"]
        assert [row["text"][:4] for row in read(tmp_path, split="test")] == ["test"]

    def test_files_that_name_no_split_are_all_read(self, tmp_path):
        (tmp_path / "b.jsonl").write_text('{"text": "b"}\n')
        (tmp_path / "a.csv").write_text("text\na\n")
        assert read(tmp_path) == [{"text": "a"}, {"text": "b"}]

    def test_another_split_is_never_taken_instead(self, tmp_path):
        (tmp_path / "test.jsonl").write_text('{"text": "b"}\n')
        with pytest.raises(DataError, match=r"no file of split 'train'.*the folder has: test"):
            read(tmp_path)

    def test_data_dir_is_a_folder_inside(self, tmp_path):
        (tmp_path / "inner").mkdir()
        (tmp_path / "inner" / "a.jsonl").write_text('{"text": "b"}\n')
        assert read(tmp_path, data_dir="inner") == [{"text": "b"}]
        with pytest.raises(DataError, match="set data_dir to one of: inner"):
            read(tmp_path)
        with pytest.raises(DataError, match="data_dir 'other' does not exist"):
            read(tmp_path, data_dir="other")

    def test_a_folder_saved_by_datasets_with_and_without_splits(self, tmp_path):
        data = datasets.Dataset.from_list(ROWS)
        data.save_to_disk(str(tmp_path / "one"))
        datasets.DatasetDict(train=data, test=data.select([0])).save_to_disk(str(tmp_path / "two"))
        assert read(tmp_path / "one") == ROWS
        assert read(tmp_path / "two") == ROWS
        assert read(tmp_path / "two", split="test") == ROWS[:1]
        with pytest.raises(DataError, match=r"no split 'nope'.*it has: train, test"):
            read(tmp_path / "two", split="nope")

    def test_a_damaged_saved_folder_is_named(self, tmp_path):
        datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
        (tmp_path / "one" / "data-00000-of-00001.arrow").write_bytes(b"")
        with pytest.raises(DataError, match="cannot be read as a saved data set"):
            read(tmp_path / "one")

    def test_slices_of_local_data_are_refused(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"text": "b"}\n')
        with pytest.raises(DataError, match="use max_samples"):
            read(tmp_path / "a.jsonl", split="train[:10]")


@pytest.mark.parametrize("path", ["./missing", "/missing/file.jsonl", "missing.jsonl", "a/b/c", "~/missing-folder"])
def test_a_local_path_that_does_not_exist_is_not_taken_for_a_hub_id(path):
    with pytest.raises(DataError, match="no such file or folder"):
        read(path)


def test_a_file_that_may_not_be_read_is_an_environment_fault(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("")
    path.chmod(0)
    try:
        path.open().close()
    except PermissionError:
        with pytest.raises(EnvironmentFault, match=str(path)):
            read(path)
    else:
        assert read(path) == []  # the superuser may read anything


class TestFingerprint:
    def test_files(self, tmp_path):
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "b"}\n'))
        expected = {"kind": "files", "files": [str(tmp_path / "a.jsonl.gz")]}
        assert fingerprint(DataSpec(path=str(tmp_path))) == expected
        assert fingerprint(DataSpec(path=str(tmp_path / "a.jsonl.gz"))) == expected

    def test_saved_folders_name_every_file(self, tmp_path):
        datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path))
        names = {Path(file).name for file in fingerprint(DataSpec(path=str(tmp_path)))["files"]}
        assert names == {"data-00000-of-00001.arrow", "dataset_info.json", "state.json"}

    def test_hub_and_toy(self):
        assert fingerprint(DataSpec(path="a/b", revision="v1")) == {
            "kind": "hub", "path": "a/b", "name": None, "data_dir": None, "revision": "v1", "split": "train",
        }  # fmt: skip
        toy = fingerprint(DataSpec(path="toy", name="corpus", noise=0.2, seed=3))
        assert toy.pop("version") >= 1
        assert toy == {"kind": "toy", "name": "corpus", "seed": 3, "noise": 0.2}
