import json

from prefopt.cli.app import run_command


def test_check_shows_what_would_run_in_order(capsys, recipe):
    assert run_command(["check", str(recipe)]) == 0
    out = capsys.readouterr().out
    assert "quickstart: 3 stages" in out
    assert [line.split()[0] for line in out.splitlines()[3:6]] == ["base", "sft", "dpo"]
    assert "model base, init sft" in out


def test_check_json(capsys, recipe):
    assert run_command(["check", str(recipe), "--json", "--set", "stages.dpo.init=null"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in document["stages"]] == ["base", "dpo", "sft"]
    assert document["stages"][1] == {"stage": "dpo", "kind": "dpo", "needs": {"model": ["base"]}}


def test_check_shows_every_round(capsys, recipe):
    rounds = "rounds={count: 2, stages: [dpo], carry: {sft: dpo}}"
    assert run_command(["check", str(recipe), "--json", "--set", rounds]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["stage"] for stage in stages] == ["base", "sft", "dpo@1", "dpo@2"]
    assert stages[-1]["needs"] == {"model": ["base"], "init": ["dpo@1"]}


def test_check_lists_every_problem_on_stderr(capsys, recipe):
    recipe.write_text(recipe.read_text().replace("name: quickstart", "nam: q").replace("init: sft", "init: stf"))
    assert run_command(["check", str(recipe), "--set", "seed=-1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "error: 3 problems in the recipe"
    assert f"{recipe}:2: nam: unknown key — did you mean 'name'?" in lines[1]
    assert f"{recipe}:8: stages.dpo.init: there is no stage 'stf' — did you mean 'sft'?" in lines[2]
    assert "--set seed=-1" in lines[3]


def test_check_warns_on_stderr_and_passes(capsys, recipe):
    assert run_command(["check", str(recipe), "--set", "data.spare={path: toy}"]) == 0
    assert "warning: --set data.spare" in capsys.readouterr().err


def test_check_writes_nothing(recipe, shell):
    before = sorted(recipe.parent.iterdir())
    assert shell("check", recipe, cwd=recipe.parent).returncode == 0
    assert sorted(recipe.parent.iterdir()) == before


def test_markup_in_a_recipe_is_text(capsys, recipe):
    recipe.write_text(recipe.read_text() + "  'a[red]': {kind: sft, data: demos}\n")
    assert run_command(["check", str(recipe)]) == 2
    assert "'a[red]' is no name" in capsys.readouterr().err
