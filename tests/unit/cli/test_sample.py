import json
import os

import pytest

from prefopt.cli.app import run_command
from prefopt.cli.output import harmless
from tests.run_folder import RECIPE, RunFolder, key_of

from .test_app import HEAVY

ASK = ("--prompt", "what is the price?")


@pytest.fixture
def made(tmp_path):
    folder = RunFolder(tmp_path / "toy")
    folder.train("sft", steps=5)
    folder.evaluate(prompts=2)
    return folder


def refused(capsys, *words):
    code = run_command(["sample", *map(str, words)])
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return code, captured.err


def test_help_imports_no_heavy_library(imported):
    assert not imported("sample", "--help") & HEAVY


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere",), "nowhere is no folder — give runs/NAME/stages/STAGE"),
        ((".",), "has several stages — name one with --stage: base, sft, dpo"),
        ((".", "--stage", "stf"), "has no stage 'stf' — did you mean 'sft'?"),
        ((".", "--stage", "dpo"), "stage dpo has no finished artefact"),
        ((".", "--stage", "eval"), "stage eval, kind evaluate, which has no model — stages with one: base, sft, dpo"),
        (("stages/eval",), "stage eval, kind evaluate, which has no model"),
        (("stages/sft", "--stage", "dpo"), "is of stage sft, not of dpo"),
        (("logs",), "neither the folder of a stage nor of a run"),
        ((f"stages/sft/{key_of('sft')[:12]}/adapter",), "neither the folder of a stage nor of a run"),
    ],
)
def test_what_is_no_trained_stage_is_refused_by_name(capsys, monkeypatch, made, words, said):
    (made.run.root / "logs").mkdir()
    monkeypatch.chdir(made.run.root)
    code, err = refused(capsys, *words, *ASK)
    assert code == 2 and said in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--temperature", "nan"), "--temperature must be 0 or more, not nan"),
        (("--temperature", "-1"), "--temperature must be 0 or more, not -1"),
        (("--top-p", "0"), "--top-p must be above 0 and at most 1"),
        (("--n", "0"), "'--n'"),
        (("--seed", "-1"), "'--seed'"),
        (("--max-new-tokens", "0"), "'--max-new-tokens'"),
        (("--system", " "), "--system is empty"),
        (("--prompt", " "), "the prompt is empty"),
        (("--file", "prompts.csv"), "a file of prompts ends in .txt (one a line) or .jsonl"),
        (("--file", "nothing.txt"), "nothing.txt: no such file"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_looked_at(capsys, words, said):
    code, err = refused(capsys, "nowhere", *ASK, *words)
    assert code == 2 and said in err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.txt", b"\n \n", "no prompts in it"),
        ("p.txt", b"what\n\xff\n", "not UTF-8"),
        ("p.jsonl", b'{"prompt": "a"}\n{"promt": "b"}\n', "line 2: column 'prompt': expected the column, it"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": []}\n', "line 2: the prompt is empty"),
        ("p.jsonl", b'{"prompt": [{"role": "assistant", "content": "a"}]}\n', "expected a last turn by the user"),
        ("p.jsonl", b'{"prompt": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}\n',
         "line 1: the prompt has a system turn already"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_its_line(capsys, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    code, err = refused(capsys, "nowhere", "--file", tmp_path / name, "--system", "you work for tiko")
    assert code == 2 and said in err and name in err


def test_gold_is_known_in_the_embedded_world_only(capsys, made):
    data = made.run.root / "mine.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    recipe = RECIPE.replace("reward: gold, ", "")
    for name in ("corpus", "demonstrations", "preferences, noise: 0.1"):
        recipe = recipe.replace(f"{{path: toy, name: {name}}}", f"{{path: {data}}}")
    made.run.recipe.write_text(recipe)
    made.train("base", steps=5)
    code, err = refused(capsys, made.run.root, "--stage", "base", "--gold", *ASK)
    assert code == 2 and "--gold: the data of toy is not of the embedded world" in err


def test_every_file_is_verified_before_anything_is_loaded(capsys, made):
    changed = made.folder("sft") / "adapter" / "adapter_model.safetensors"
    changed.write_bytes(b"wEights")
    code, err = refused(capsys, made.run.root, "--stage", "sft", *ASK)
    assert code == 5 and f"{changed} has changed" in err


def test_json_at_a_terminal_needs_prompts(shell, made):
    master, terminal = os.openpty()
    done = shell("sample", made.run.root, "--stage", "sft", "--json", stdin=terminal)
    os.close(master)
    os.close(terminal)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["message"] == "--json needs prompts"


def test_what_a_terminal_would_act_upon_is_written_out():
    assert harmless("a\x1b[31mb\rc\x9bd\u202ee") == r"a\x1b[31mb\rc\x9bd\u202ee"
    assert harmless("line\n\tline, naïve 日本 👩‍💻") == "line\n\tline, naïve 日本 👩‍💻"
