import json
import math

import pytest

from prefopt.errors import DataError
from prefopt.tracking.jsonl import JsonlSink, read_jsonl


def strict(line):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    return json.loads(line, parse_constant=refuse)


def write_steps(path, *steps):
    sink = JsonlSink(path, clock=lambda: 12.5)
    for step in steps:
        sink.log({"train/loss": 1 / step}, step)
    sink.finish()


def test_a_row_is_on_disk_before_the_next_call(tmp_path):
    sink = JsonlSink(tmp_path / "m.jsonl", clock=lambda: 12.5)
    sink.log({"train/loss": 0.25}, 3)
    assert (tmp_path / "m.jsonl").read_text() == '{"step": 3, "time": 12.5, "train/loss": 0.25}\n'
    sink.finish()
    sink.finish()


def test_nonfinite_values_stay_visible_in_strict_json(tmp_path):
    sink = JsonlSink(tmp_path / "m.jsonl")
    sink.log({"train/loss": math.nan, "dpo/margin": -math.inf, "dpo/accuracy": 0.5}, 1)
    sink.finish()
    row = strict((tmp_path / "m.jsonl").read_text())
    assert row["train/loss"] is None and row["dpo/margin"] is None and row["dpo/accuracy"] == 0.5
    assert row["nonfinite"] == ["dpo/margin", "train/loss"]


def test_numpy_scalars_are_numbers(tmp_path):
    numpy = pytest.importorskip("numpy")
    sink = JsonlSink(tmp_path / "m.jsonl")
    sink.log({"train/loss": numpy.float32(0.5), "eval/loss": numpy.float32("nan"), "train/tokens": 7}, 1)
    sink.finish()
    (row,) = read_jsonl(tmp_path / "m.jsonl")
    assert row["train/loss"] == 0.5 and row["nonfinite"] == ["eval/loss"] and row["train/tokens"] == 7


def test_resume_drops_the_lost_timeline_and_its_summary(tmp_path):
    path = tmp_path / "m.jsonl"
    write_steps(path, 1, 2, 3, 4)
    with path.open("a") as file:
        file.write('{"step": 2, "time": 1.0, "summary": true, "train/loss": 9}\n')
    said = []
    sink = JsonlSink(path, resume_step=2, log=said.append)
    sink.log({"train/loss": 0.7}, 3)
    sink.finish()
    assert [(row["step"], row["train/loss"]) for row in read_jsonl(path)] == [(1, 1.0), (2, 0.5), (3, 0.7)]
    assert len(said) == 1 and "3 rows after step 2 dropped" in said[0]


def test_resume_keeps_what_nonfinite_says(tmp_path):
    path = tmp_path / "m.jsonl"
    sink = JsonlSink(path)
    sink.log({"train/loss": math.nan}, 1)
    sink.log({"train/loss": 1.0}, 2)
    sink.finish()
    JsonlSink(path, resume_step=1).finish()
    assert [row["nonfinite"] for row in read_jsonl(path)] == [["train/loss"]]


def test_a_fresh_start_begins_a_new_file(tmp_path):
    write_steps(tmp_path / "m.jsonl", 1, 2)
    write_steps(tmp_path / "m.jsonl", 1)
    assert [row["step"] for row in read_jsonl(tmp_path / "m.jsonl")] == [1]


@pytest.mark.parametrize("tail", [b'{"step": 3, "ti', b'{"step": 3, "time": 1.0}', b'{"a": "\xc3', b"\x00\x00\x00\n"])
def test_a_torn_last_line_is_left_out_and_repaired(tmp_path, tail):
    path = tmp_path / "m.jsonl"
    write_steps(path, 1, 2)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    said = []
    assert [row["step"] for row in read_jsonl(path, said.append)] == [1, 2]
    JsonlSink(path, resume_step=2, log=said.append).finish()
    assert [row["step"] for row in read_jsonl(path)] == [1, 2]
    assert path.read_bytes() == whole
    assert len(said) == 2 and all("torn" in text for text in said)


@pytest.mark.parametrize("middle", [b'{"step": 2, "ti', b"[1]", b'{"a": NaN}', b"\x00\x00"])
def test_a_torn_middle_line_is_an_error_with_its_number(tmp_path, middle):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n' + middle + b'\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"m\.jsonl:2: not a JSON object") as caught:
        read_jsonl(path)
    assert caught.value.exit_code == 2
    with pytest.raises(DataError):
        JsonlSink(path, resume_step=1)


def test_every_prefix_of_a_file_reads(tmp_path):
    path = tmp_path / "m.jsonl"
    write_steps(path, 1, 2, 3)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        steps = [row["step"] for row in read_jsonl(path)]
        assert steps == [1, 2, 3][: whole[:length].count(b"\n")]


def test_the_summary_is_marked(tmp_path):
    sink = JsonlSink(tmp_path / "m.jsonl")
    sink.log({"train/loss": 1.0}, 5)
    sink.summary({"eval/loss": 2.0})
    sink.finish()
    last = read_jsonl(tmp_path / "m.jsonl")[-1]
    assert last["summary"] is True and last["step"] == 5 and last["eval/loss"] == 2.0
