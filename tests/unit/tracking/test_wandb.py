"""Weights & Biases must never cost a training run: the real client, against loopback servers only."""

import json
import math
import re
import time

import pytest

from prefopt.recipe.schema import TrackingSpec, WandbSpec
from prefopt.tracking.jsonl import read_jsonl
from prefopt.tracking.tracker import open_tracker
from prefopt.tracking.wandb import Limits, RunIdentity, WandbSink, server_answers, stable_run_id
from tests.wandb_file import OfflineRun

SECRET = "0123456789abcdef" * 2 + "01234567"
ONLINE = WandbSpec(project="proj", mode="online")
OFFLINE = WandbSpec(project="proj", mode="offline", tags=("one", "two"))
QUICK = Limits(probe=0.4, init=6.0, finish=6.0)


def open_sink(directory, spec=OFFLINE, config=None, said=None):
    identity = RunIdentity("toy-run", "policy", "dpo", "abcdef123456")
    log = (said if said is not None else []).append
    return WandbSink(directory, spec, identity, config or {}, log=log, limits=QUICK)


def all_bytes(directory):
    return b"\n".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def test_an_offline_run_holds_what_was_logged(tmp_path):
    said = []
    sink = open_sink(tmp_path, config={"learning_rate": 1e-4, "data": ["hh"], "model": "tiny"}, said=said)
    sink.log({"train/loss": 0.5}, 10)
    sink.log({"eval/loss": 0.75}, 10)
    sink.log({"train/loss": math.nan}, 20)
    sink.table("samples", [{"policy": "sft", "gold": 1.5}, {"policy": "dpo", "gold": None, "violations": ["X-1"]}])
    sink.summary({"eval/dpo/accuracy": 0.8})
    sink.finish(0)
    sink.finish(0)
    run = OfflineRun(tmp_path)
    assert (run.run.project, run.run.run_group, run.run.job_type, run.run.display_name) == (
        "proj",
        "toy-run",
        "dpo",
        "policy",
    )
    assert list(run.run.tags) == ["one", "two"]
    assert run.run.run_id == (tmp_path / "wandb_run_id").read_text().strip()
    assert run.config == {
        "learning_rate": 1e-4,
        "data": ["hh"],
        "model": "tiny",
        "run": "toy-run",
        "stage": "policy",
        "kind": "dpo",
        "key": "abcdef123456",
    }
    first, second = run.history[:2]
    assert (first["_step"], first["step"], first["train/loss"], first["eval/loss"]) == (10, 10, 0.5, 0.75)
    assert second["_step"] == 20 and math.isnan(float(second["train/loss"]))
    assert run.step_metrics["*"] == "step"
    assert run.summary["eval/dpo/accuracy"] == 0.8
    (table,) = (tmp_path / "wandb").rglob("*.table.json")
    assert json.loads(table.read_text())["data"] == [["sft", 1.5, None], ["dpo", None, "['X-1']"]]
    assert sink.errors == 0
    assert len(said) == 1 and f"wandb sync {run.path.parent}" in said[0]


def test_a_table_says_in_words_what_costs(tmp_path):
    said = "a red\nlamp"
    rows = [
        {"completion": said, "costs": {"banned": 1.0, "late": 0.0}, "spans": {"banned": [[2, 10]]}, "kl": 0.5},
        {"completion": "", "costs": {"banned": 0.0, "late": 1.0}, "spans": {}, "kl": 0.5},
    ]
    sink = open_sink(tmp_path)
    sink.table("samples", rows)
    sink.finish(0)
    (table,) = (tmp_path / "wandb").rglob("*.table.json")
    sent = json.loads(table.read_text())
    assert sent["columns"] == ["completion", "costs", "kl", "flagged"]
    assert [row[-1] for row in sent["data"]] == ['banned: "red\\nlamp" (1.0)', "late (1.0)"]
    assert rows[0]["spans"] == {"banned": [[2, 10]]} and sink.errors == 0


def test_nothing_of_the_machine_or_the_environment_is_recorded(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "JUDGE_SECRET"):
        monkeypatch.setenv(name, SECRET)
    config = {
        "learning_rate": 1e-4,
        "beta": f"beta {SECRET}",
        "environ": {"HF_TOKEN": "x"},
        "HF_TOKEN": "leaked-value",
        "data": ["https://user:hunter22@host/set.jsonl", "/home/someone/private/hh"],
        "model": {
            "model_name_or_path": "/home/someone/private/tiny",
            "lora": {"lora_r": 8, "token": "leaked-value"},
            "api_key": "leaked-value",
        },
    }
    model = config.pop("model")
    sink = open_sink(tmp_path, config={"stage": config, "model": model, "environ": {"HF_TOKEN": "leaked-value"}})
    sink.log({"train/loss": 0.5}, 1)
    sink.finish(0)
    run = OfflineRun(tmp_path)
    assert run.config["beta"] == "beta [redacted]"
    assert run.config["model"] == {"model_name_or_path": "tiny", "lora": {"lora_r": 8}}
    assert run.config["data"] == ["https://[redacted]@host/set.jsonl", "hh"]
    assert run.run.host == "localhost" and run.run.git.remote_url == ""
    everything = all_bytes(tmp_path)
    for leak in (SECRET, "leaked-value", "hunter22", "someone"):
        assert leak.encode() not in everything, leak
    assert not list(tmp_path.rglob("requirements.txt")) and not list(tmp_path.rglob("wandb-metadata.json"))


def test_the_run_id_survives_a_resume_and_steps_go_on(tmp_path):
    for steps in ((1, 2), (2, 3)):
        sink = open_sink(tmp_path)
        for step in steps:
            sink.log({"train/loss": 1 / step}, step)
        sink.finish(0)
        time.sleep(1.1 if steps == (1, 2) else 0)  # wandb names folders by the second
    first, second = OfflineRun(tmp_path, 0), OfflineRun(tmp_path, 1)
    assert first.run.run_id == second.run.run_id
    assert [row["_step"] for row in second.history] == [2, 3]


def test_a_broken_run_id_file_is_replaced(tmp_path):
    (tmp_path / "wandb_run_id").write_text("../../x\n")
    assert re.fullmatch("[0-9a-f]{16}", stable_run_id(tmp_path))
    assert stable_run_id(tmp_path) == stable_run_id(tmp_path)


def assert_offline_with_one_warning(directory, said, reason):
    start = time.monotonic()
    sink = open_sink(directory, ONLINE, said=said)
    assert time.monotonic() - start < QUICK.init
    assert sink.mode == "offline" and sink.errors == 0
    assert len(said) == 1 and reason in said[0] and SECRET not in said[0]
    sink.log({"train/loss": 1.0}, 1)
    sink.finish(0)
    assert OfflineRun(directory).history[0]["train/loss"] == 1.0
    assert not list((directory / "wandb").glob("run-*"))


def test_no_key_is_offline(tmp_path):
    assert_offline_with_one_warning(tmp_path, [], "no API key")


def test_a_key_in_netrc_counts(tmp_path, own_wandb, monkeypatch, refused):
    monkeypatch.setenv("WANDB_BASE_URL", refused)
    (own_wandb / "netrc").write_text(f"machine {refused.removeprefix('http://')} login user password {SECRET}\n")
    assert_offline_with_one_warning(tmp_path, [], "does not answer")


def test_a_refused_server_is_offline(tmp_path, monkeypatch, refused):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_BASE_URL", refused)
    assert_offline_with_one_warning(tmp_path, [], f"{refused} does not answer")


def test_a_black_holed_server_is_offline(tmp_path, monkeypatch, black_hole):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_BASE_URL", black_hole)
    assert_offline_with_one_warning(tmp_path, [], "does not answer within 0.4 s")


def test_a_refused_key_is_offline(tmp_path, monkeypatch, serve):
    url = serve(lambda method, path, body: (200, b"{}") if path == "/healthz" else (401, b'{"errors": []}'))
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    assert_offline_with_one_warning(tmp_path, [], "401")


def test_a_server_that_hangs_after_the_probe_is_offline(tmp_path, monkeypatch, serve):
    def answer(method, path, body):
        if path != "/healthz":
            time.sleep(8)
        return 200, b"{}"

    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_BASE_URL", serve(answer))
    assert_offline_with_one_warning(tmp_path, [], "could not start online")


def test_the_environment_can_only_take_away(tmp_path, monkeypatch, serve):
    asked = []

    def answer(method, path, body):
        asked.append(path)
        return 200, b"{}"

    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_BASE_URL", serve(answer))
    monkeypatch.setenv("WANDB_MODE", "offline")
    sink = open_sink(tmp_path, ONLINE)
    assert sink.mode == "offline"
    sink.finish(0)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert open_sink(tmp_path / "other", ONLINE).mode == "off"
    assert asked == []


BUCKET = {
    "id": "1",
    "name": "run",
    "displayName": "policy",
    "config": "{}",
    "historyLineCount": 0,
    "project": {"id": "1", "name": "proj", "entity": {"id": "1", "name": "me"}},
}


class FakeWandb:
    """As much of wandb's server as a run needs; `alive = False` makes it fail from then on."""

    def __init__(self):
        self.alive, self.streamed = True, b""

    def __call__(self, method, path, body):
        if not self.alive:
            return 500, b"{}"
        if path.endswith("/file_stream"):
            self.streamed += body
            return 200, b"{}"
        if b"RunResumeStatus" in body:
            return 200, b'{"data": {"model": null}}'
        if b"UpsertBucket" in body:
            return 200, json.dumps({"data": {"upsertBucket": {"bucket": BUCKET, "inserted": True}}}).encode()
        if b"CreateRunFiles" in body:
            return 200, b'{"errors": [{"message": "no files here"}]}'
        return 200, b'{"data": {}}'


@pytest.mark.slow
def test_a_server_that_dies_mid_run_costs_the_limit_at_most(tmp_path, monkeypatch, serve):
    server, said = FakeWandb(), []
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_BASE_URL", serve(server))
    sink = open_sink(tmp_path, ONLINE, {"beta": 0.25, "HF_TOKEN": "leaked-value"}, said)
    assert sink.mode == "online" and said == []
    server.alive = False
    start = time.monotonic()
    for step in range(50):
        sink.log({"train/loss": 0.5}, step)
    assert time.monotonic() - start < 1.0
    start = time.monotonic()
    sink.finish(0)
    assert time.monotonic() - start < QUICK.finish + 1
    assert any(f"wandb sync {tmp_path}/wandb/run-" in text for text in said)
    assert b"leaked-value" not in all_bytes(tmp_path)


class Raising:
    """A run of wandb that fails in every call."""

    def __getattr__(self, name):
        raise RuntimeError(f"wandb is broken: {SECRET}")


def test_whatever_wandb_raises_is_counted_and_said_once(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    said = []
    sink = open_sink(tmp_path, said=said)
    sink._run.finish()
    sink._run = Raising()
    for step in range(3):
        sink.log({"train/loss": 1.0}, step)
    sink.summary({"train/loss": 1.0})
    sink.finish(1)
    assert sink.errors == 5
    assert [text.split(" failed")[0] for text in said[:3]] == ["wandb: log", "wandb: summary", "wandb: finish"]
    assert "wandb is broken: [redacted]" in said[0]
    assert "wandb sync" in said[3] and len(said) == 4


class Hanging:
    def finish(self, exit_code):
        time.sleep(3)


def test_finish_is_bounded(tmp_path):
    said = []
    sink = open_sink(tmp_path, said=said)
    sink._run.finish()
    sink._run, sink._limits = Hanging(), Limits(finish=0.3)
    start = time.monotonic()
    sink.finish(0)
    assert time.monotonic() - start < 2
    assert sink.errors == 1 and "finish failed" in said[0] and "wandb sync" in said[1]


def test_a_folder_that_cannot_be_written_turns_wandb_off(tmp_path):
    said = []
    (tmp_path / "file").write_text("")
    sink = open_sink(tmp_path / "file", said=said)
    sink.log({"train/loss": 1.0}, 1)
    sink.finish(0)
    assert sink.mode == "off" and sink.errors == 1 and len(said) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "http://[", "ftp:"])
def test_an_address_without_a_server_does_not_answer(url):
    assert server_answers(url, 1.0) is False


def test_a_server_that_says_no_still_answers(serve):
    assert server_answers(serve(lambda method, path, body: (404, b"")), 2.0) is True


def test_open_tracker_always_writes_json_lines(tmp_path):
    common = {"run_name": "r", "stage": "policy", "kind": "dpo", "key": "k", "config": {}, "log": lambda text: None}
    plain = open_tracker(tmp_path, spec=TrackingSpec(), resume_step=None, **common)
    plain.log({"train/loss": 1.0}, 1)
    plain.table("samples", [{"a": 1}])
    plain.finish(0)
    assert plain.errors == 0 and not (tmp_path / "wandb").exists()
    both = open_tracker(tmp_path, spec=TrackingSpec(wandb=OFFLINE), resume_step=1, **common)
    both.log({"train/loss": 0.5}, 2)
    both.table("samples", [{"a": 1}])
    both.summary({"train/loss": 0.5})
    both.finish(0)
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 2]
    assert OfflineRun(tmp_path).history[0]["train/loss"] == 0.5


def test_a_broken_tracker_leaves_the_file_whole(tmp_path):
    common = {"run_name": "r", "stage": "policy", "kind": "dpo", "key": "k", "config": {}, "log": lambda text: None}
    tracker = open_tracker(tmp_path, spec=TrackingSpec(wandb=OFFLINE), resume_step=None, **common)
    tracker.wandb._run.finish()
    tracker.wandb._run = Raising()
    for step in (1, 2):
        tracker.log({"train/loss": 1.0}, step)
    tracker.finish(0)
    assert tracker.errors == 3
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2]
