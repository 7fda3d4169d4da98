import json
import math

import pytest

from prefopt.cli.app import run_command
from prefopt.store.files import sha256_json, write_json
from prefopt.store.manifest import Manifest, commit
from tests.run_folder import RunFolder

from .test_app import HEAVY

RECIPE = """\
name: toy
seed: 17
model: {model_name_or_path: base}
data: {pairs: {path: toy, name: preferences}}
stages:
  base: {kind: pretrain, data: [pairs]}
  sft: {kind: sft, data: [pairs]}
  eval: {kind: evaluate, policies: [dpo, sft, ppo], baseline: sft, reward: gold, data: [pairs]}
  again: {kind: evaluate, policies: [sft, dpo], reward: gold, data: [pairs]}
"""
# Per policy the mean of its scores above that of sft.
GAINS = {"dpo": 0.8, "sft": 0.0, "ppo": 0.0}


class Evaluated(RunFolder):
    """A run folder with finished evaluate stages, keys included."""

    def evaluated(self, stage="eval", gains=GAINS, *, seed=17, first=0, prompts=24, scored=True, spec=(), inputs=()):
        content = {
            "kind": "evaluate",
            "seed": seed,
            "spec": {"reward": {"model": "gold", "lexicon": None}, **dict(spec)},
        }
        key = sha256_json(content)
        folder = self.run.stage(stage, key)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "key.json", content)
        rows = [
            self.answer(policy, number, gain + math.sin(number * len(policy + stage) + ord(policy[0]) + seed) / 3)
            for policy, gain in gains.items()
            for number in range(first, first + prompts)
        ]
        for row in rows if not scored else ():
            row |= {"reward": None, "gold": None}
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        manifest = Manifest(stage, "evaluate", key, seed, inputs=dict(inputs), details={"baseline": "sft"})
        commit(folder, manifest, ["samples.jsonl"])
        self.run.set_current(stage, key)
        return self

    def answer(self, policy, number, score):
        row = self.sample(policy, number, score)
        return {**row, "reward": score + math.cos(number), "gold": score + math.cos(number)}


def made(root, **options):
    return Evaluated(root, RECIPE).evaluated(**options).run.root


def seed_of(root, seed, **options):
    return made(root / "seeds" / str(seed), seed=seed, **options)


def said(capsys, *words):
    assert run_command(["compare", *map(str, words)]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def document(capsys, *words):
    out, err = said(capsys, *words, "--json")
    assert err == ""
    return json.loads(out)


def labels(found):
    return [entry["label"] for entry in found["entries"]]


def refused(capsys, *words, code=2):
    assert run_command(["compare", *map(str, words)]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_help_imports_no_heavy_library_and_the_work_no_torch(imported, tmp_path):
    assert not imported("compare", "--help") & HEAVY
    assert not imported("compare", made(tmp_path / "toy")) & {"torch", "transformers", "datasets", "wandb", "trl"}


def test_the_policies_of_one_run_against_its_baseline(capsys, tmp_path):
    out, err = said(capsys, made(tmp_path / "toy"))
    assert err == "" and out.startswith("24 prompts; 95 % intervals\n")
    assert "minus sft" in out and "Elo" in out and "over seeds" not in out
    first, second = out.splitlines()[-2:]
    assert first.startswith("dpo beats sft by 0.") and second.startswith("no difference shown between ppo and sft: ")
    assert first.endswith("].") and "this sample could have shown 0." in second


def test_one_json_document(capsys, tmp_path):
    found = document(capsys, made(tmp_path / "toy"))
    assert (found["reference"], found["prompts"], found["prompts_left_out"], found["notes"]) == ("sft", 24, 0, [])
    assert labels(found) == ["sft", "dpo", "ppo"], "the baseline first"
    assert found["entries"][1]["against"]["shown"] and found["entries"][1]["seeds"].keys() == {"17"}


def test_another_reference_and_policies_by_name(capsys, tmp_path):
    root = made(tmp_path / "toy")
    out, _ = said(capsys, root, "--reference", "dpo")
    assert "sft loses to dpo by 0." in out and "minus dpo" in out
    assert labels(document(capsys, f"{root}:ppo", f"{root}:dpo")) == ["ppo", "dpo"]
    assert labels(document(capsys, f"{root}:ppo", root)) == ["ppo", "sft", "dpo"], "each once"


def test_the_last_evaluate_stage_with_scores_or_the_one_named(capsys, tmp_path):
    folder = Evaluated(tmp_path / "toy", RECIPE).evaluated()
    folder.evaluated("again", {"sft": 0.0, "dpo": 0.0}, scored=False)
    assert labels(document(capsys, folder.run.root)) == ["sft", "dpo", "ppo"]
    folder.evaluated("again", {"sft": 0.0, "dpo": 0.0}, seed=18)
    assert labels(document(capsys, folder.run.root)) == ["sft", "dpo"]
    assert labels(document(capsys, folder.run.root, "--stage", "eval")) == ["sft", "dpo", "ppo"]


def test_two_runs_are_named_by_their_folders(capsys, tmp_path):
    one, two = made(tmp_path / "one"), made(tmp_path / "two", gains={"sft": 0.1, "dpo": 2.0}, first=4)
    found = document(capsys, f"{one}:dpo", two)
    assert labels(found) == ["one:dpo", "two:sft", "two:dpo"]
    assert (found["reference"], found["prompts"], found["prompts_left_out"]) == ("one:dpo", 20, 8)
    assert found["entries"][2]["verdict"].startswith("two:dpo beats one:dpo by 1.")
    out, _ = said(capsys, one, two)
    assert "20 prompts, 8 that not all have left out" in out


def test_two_folders_of_one_name_are_named_by_their_paths(capsys, monkeypatch, tmp_path):
    made(tmp_path / "a" / "toy")
    made(tmp_path / "b" / "toy")
    monkeypatch.chdir(tmp_path)
    assert labels(document(capsys, "a/toy:sft", "b/toy:dpo")) == ["a/toy:sft", "b/toy:dpo"]
    monkeypatch.chdir(tmp_path / "a" / "toy")
    assert labels(document(capsys, ".", "../toy:dpo")) == ["sft", "dpo", "ppo"], "one folder, however it is named"


def test_a_folder_with_a_colon_is_meant_as_a_whole(capsys, tmp_path):
    root = made(tmp_path / "toy:1")
    assert labels(document(capsys, root)) == ["sft", "dpo", "ppo"]
    assert labels(document(capsys, f"{root}:dpo", f"{root}:sft")) == ["dpo", "sft"]


def test_further_seeds_count_where_they_answered_the_same_prompts(capsys, tmp_path):
    root = made(tmp_path / "toy")
    seed_of(root, 18)
    seed_of(root, 19, gains={"sft": 0.0, "dpo": 1.2, "ppo": 0.0})
    seed_of(root, 20, first=4)
    Evaluated(root / "seeds" / "21", RECIPE)
    seed_of(root, 22, scored=False)
    seed_of(root, 17)
    (root / "seeds" / "notes.txt").write_text("mine")
    out, err = said(capsys, root)
    assert "over seeds" in out
    for line in (
        "seeds/17 is left out: there is a run with seed 17 already",
        "seeds/20 is left out: it answered other prompts, 20 of 24 are the same",
        "seeds/21 is left out: stage eval of",
        "seeds/22 has no scores",
    ):
        assert line in err
    assert err.count("note: ") == 4
    dpo = document(capsys, root)["entries"][1]
    assert dpo["seeds"].keys() == {"17", "18", "19"} and dpo["against"]["paired_seeds"]
    assert dpo["seeds"]["19"] == dpo["spread"]["high"] > dpo["spread"]["low"] + 0.3


def test_a_reward_model_for_every_seed_is_told(capsys, tmp_path):
    spec = {"reward": {"model": "rm", "lexicon": None}}
    root = made(tmp_path / "toy", spec=spec, inputs={"rm": {"key": "a", "sha256": "a"}})
    seed_of(root, 18, spec=spec, inputs={"rm": {"key": "b", "sha256": "b"}})
    (note,) = document(capsys, root)["notes"]
    assert "scored by a reward model each" in note


def test_runs_sampled_differently_are_told(capsys, tmp_path):
    one, two = made(tmp_path / "one", spec={"temperature": 1.0}), made(tmp_path / "two", spec={"temperature": 0.5})
    (note,) = document(capsys, one, two)["notes"]
    assert note.endswith("were sampled differently: temperature 1.0 and 0.5")


@pytest.mark.parametrize(
    ("spec", "sha256", "text"),
    [
        ({"reward": {"model": "rm", "lexicon": None}}, "b", "by different rewards: 'gold' and 'rm'"),
        ({"reward": {"model": None, "lexicon": "5f" * 32}}, "b", "'gold' and the word list 5f5f5f5f5f5f"),
        ({"reward": {"model": None, "url": "http://x/y"}}, "b", "'gold' and the server http://x/y"),
        ({"reward": {"function": "f", "function_content": "5f" * 32}}, "b", "'gold' and the function f (5f5f5f5f5f5f)"),
        ({"reward": {"pretrained": "5f" * 32}}, "b", "'gold' and the model 5f5f5f5f5f5f"),
        ({"reward": {"pretrained": "org/m", "revision": "v2"}}, "b", "'gold' and the model org/m at v2"),
        (
            {"reward": {"weighted": [{"model": "gold", "weight": 2.0}, {"url": "http://x"}]}},
            "b",
            "'gold' and 2 × 'gold' + 1 × the server http://x",
        ),
        ({"reward": {"model": "gold", "lexicon": None}}, "", None),
    ],
)
def test_runs_scored_by_different_rewards_are_refused(capsys, tmp_path, spec, sha256, text):
    one = made(tmp_path / "one")
    two = made(tmp_path / "two", spec=spec, inputs={"rm": {"key": "k", "sha256": sha256}})
    if text is None:
        assert len(document(capsys, one, two)["entries"]) == 6
        return
    err = refused(capsys, one, two)
    assert f"{one} and {two} are scored" in err and text in err and "— evaluate both with the same reward" in err
    seed_of(one, 18, spec=spec)
    assert text in refused(capsys, one)


def test_two_trainings_of_a_reward_stage_are_different_rewards(capsys, tmp_path):
    spec = {"reward": {"model": "rm", "lexicon": None}}
    one, two = (
        made(tmp_path / name, spec=spec, inputs={"rm": {"key": name, "sha256": name}}) for name in ("one", "two")
    )
    assert "by two different trainings of 'rm'" in refused(capsys, one, two)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("nowhere",), "nowhere is no folder — give runs/NAME, or runs/NAME:POLICY"),
        (("nowhere:dpo",), "nowhere is no folder — give"),
        (("empty",), "empty is not the folder of a run: it has no recipe.yaml — give"),
        (("torn",), "torn/recipe.yaml is not valid YAML"),
        (("bare",), "bare has no finished evaluate stage — `prefopt run bare/recipe.yaml --out"),
        (("none",), "none has no finished evaluate stage — add a stage of kind evaluate"),
        (("mute",), "mute has no scores: nothing in stage eval was scored — give the stage a `reward`"),
        (("toy:dop",), "stage eval of toy has no policy 'dop' — did you mean 'dpo'?"),
        (("toy:xyzzy",), "has no policy 'xyzzy' — there are dpo, sft, ppo"),
        (("toy:",), "has no policy '' — there are dpo, sft, ppo"),
        (("toy:dpo",), "there is only dpo to compare — name another run or policy"),
        (("toy", "--stage", "evl"), "toy has no stage 'evl' — did you mean 'eval'?"),
        (("toy", "--stage", "sft"), "stage sft of toy is no evaluate stage — there are eval, again"),
        (("toy", "--stage", "again"), "stage again of toy is not finished — `prefopt run toy/recipe.yaml"),
        (("toy", "--reference", "dop"), "--reference: there is no 'dop' — did you mean 'dpo'?"),
        (("toy", "far"), "none of their 48 prompts in common — compare runs that evaluate on the same held-out"),
        ((), "Missing argument 'RUN'"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_a_remedy(capsys, monkeypatch, tmp_path, words, text):
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "toy")
    made(tmp_path / "far", first=100)
    made(tmp_path / "mute", scored=False)
    Evaluated(tmp_path / "bare", RECIPE)
    Evaluated(tmp_path / "none", "name: x\nstages: {sft: {kind: sft}}\n")
    Evaluated(tmp_path / "torn", "name: [\n")
    (tmp_path / "empty").mkdir()
    assert text in refused(capsys, *words)


def test_json_errors_are_one_document(capsys, tmp_path):
    assert run_command(["compare", str(tmp_path / "nowhere"), "--json"]) == 2
    captured = capsys.readouterr()
    assert "is no folder" in json.loads(captured.out)["error"]["message"] and captured.err == ""


@pytest.mark.parametrize("file", ["samples.jsonl", "key.json", "manifest.json"])
@pytest.mark.parametrize("where", [".", "seeds/18"])
def test_scores_are_believed_only_where_the_artefact_verifies(capsys, tmp_path, file, where):
    root = made(tmp_path / "toy")
    seed_of(root, 18)
    (changed,) = (root / where).glob(f"stages/eval/*/{file}")
    changed.write_text(changed.read_text(encoding="utf-8").replace("17", "71").replace("18", "81"), encoding="utf-8")
    assert str(changed.parent) in refused(capsys, root, code=5)


def test_scores_of_the_first_artefacts_were_gold_alone(capsys, tmp_path):
    folder = RunFolder(tmp_path / "toy")
    folder.evaluate(prompts=30)
    assert labels(document(capsys, folder.run.root)) == ["sft", "dpo"]


def test_a_stage_without_its_key_is_described_by_the_recipe(capsys, tmp_path):
    one, two = made(tmp_path / "one"), made(tmp_path / "two")
    for root in (one, two):
        (key,) = root.glob("stages/eval/*/key.json")
        key.unlink()
    assert len(document(capsys, one, two)["entries"]) == 6
    (two / "recipe.yaml").write_text(RECIPE.replace("reward: gold", "reward: {lexicon: /data/words.txt}"))
    assert "'gold' and the word list words.txt" in refused(capsys, one, two)
