import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefopt.errors import RecipeError
from prefopt.recipe.foreign import FOREIGN
from prefopt.recipe.layout import homes
from prefopt.recipe.load import load
from prefopt.recipe.schema import LATER_KINDS, Recipe

from .conftest import GOOD


def test_good_recipe(write, good):
    loaded = load(write(good))
    assert loaded.recipe.stages["dpo"].learning_rate == 1e-4
    assert loaded.recipe.stages["dpo"].max_steps == 10
    assert loaded.recipe.stages["base"].data == ("corpus",)
    assert loaded.text == good and loaded.warnings == ()
    assert Recipe.model_validate(loaded.recipe.model_dump(mode="json")) == loaded.recipe


def line_of(text, fragment):
    return next(number for number, line in enumerate(text.splitlines(), 1) if fragment in line)


@pytest.mark.parametrize(
    ("old", "new", "key", "remedy"),
    [
        ("name: quickstart", "nam: quickstart", "nam", "'name'"),
        ("model:", "modle:", "modle", "'model'"),
        ("model_name_or_path:", "model_name_or_pth:", "model.model_name_or_pth", "'model_name_or_path'"),
        ("lora_alpha:", "lora_alfa:", "model.lora.lora_alfa", "'lora_alpha'"),
        ("lora: {lora_r: 8, lora_alpha: 16}", "lora_r: 8", "model.lora_r", "'model.lora'"),
        ("noise:", "nois:", "data.prefs.nois", "'noise'"),
        ("beta:", "betta:", "stages.dpo.betta", "'beta'"),
        ("num_train_epochs: 1", "beta: 1", "stages.sft.beta", "dpo and kto stages"),
        ("baseline:", "base_line:", "stages.eval.base_line", "'baseline'"),
    ],
)
def test_unknown_keys_at_every_level(problems, good, old, new, key, remedy):
    text = good.replace(old, new, 1)
    found = problems(text)
    assert remedy in found[key].remedy
    assert found[key].where.endswith(f"recipe.yaml:{line_of(text, new)}")
    assert len(found) == 1, "a misspelt key is one problem, not also a missing one"


@pytest.mark.parametrize("name", sorted(FOREIGN))
def test_every_foreign_name_is_recognised_and_leads_somewhere(problems, good, name):
    found = problems(good.replace("beta: 0.1", f"{name}: 1"))
    problem = found[f"stages.dpo.{name}"]
    assert FOREIGN[name].framework in problem.message
    assert problem.remedy
    assert not FOREIGN[name].ours or FOREIGN[name].ours in homes()


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("pref_beta", "'beta'"),
        ("lora_rank", "'lora_r' belongs under 'model.lora'"),
        ("torch_dtype", "'dtype' belongs under 'model'"),
        ("warmup_ratio", "warmup_steps: 0.1"),
        ("gradient_checkpointing", "'activation_checkpointing'"),
        ("micro_batch_size", "'per_device_train_batch_size'"),
        ("batch_size", "'per_device_train_batch_size'"),
        ("max_prompt_length", "no longer needed"),
        ("max_completion_length", "no longer needed"),
        ("dataset_name", "data: NAME"),
        ("ppo_epochs", "'num_ppo_epochs' is a key of ppo stages"),
        ("init_kl_coef", "kl: {coefficient: 0.05}"),
        ("kl_coef", "kl: {coefficient: 0.05}"),
        ("response_length", "'max_new_tokens' is a key of collect, ppo, grpo, rloo, distill and evaluate stages"),
        ("non_eos_penalty", "'missing_eos_penalty' belongs under 'stages.NAME.reward'"),
        ("num_sample_generations", "leave it out"),
        ("reward_model_path", "reward: NAME"),
        ("stage", "the kind for rm is reward"),
    ],
)
def test_foreign_names_are_translated(problems, good, name, ours):
    assert ours in problems(good.replace("beta: 0.1", f"{name}: 1"))[f"stages.dpo.{name}"].remedy


def test_names_of_the_schema_are_not_called_foreign():
    # Of a scorer it is our own name; in a stage it is torchtune's.
    assert {name for name in FOREIGN if name in homes()} == {"batch_size"}


def test_whole_foreign_file_is_recognised(problems):
    found = problems("model_name_or_path: x\nstage: dpo\nlora_rank: 8\npref_beta: 0.1\ntemplate: q\n")
    assert "LLaMA-Factory" in found[""].message and "prefopt new" in found[""].remedy


@pytest.mark.parametrize(
    ("old", "new", "key", "message", "remedy"),
    [
        ("beta: 0.1", "beta: 0", "stages.dpo.beta", "above 0", ""),
        ("beta: 0.1", "beta: '0.2'", "stages.dpo.beta", "must be a number", "without quotes"),
        ("beta: 0.1", "beta: true", "stages.dpo.beta", "not true", ""),
        ("beta: 0.1", "beta: .inf", "stages.dpo.beta", "finite", ""),
        ("beta: 0.1", "beta: ~", "stages.dpo.beta", "no value", "leave the key out"),
        ("beta: 0.1", "loss_type: sigmoyd", "stages.dpo.loss_type", "sigmoid, cdpo", "'sigmoid'"),
        ("beta: 0.1", "activation_checkpointing: no", "stages.dpo.activation_checkpointing", "'no'", "write false"),
        ("beta: 0.1", "gradient_accumulation_steps: 1_0", "stages.dpo.gradient_accumulation_steps", "1_0", "write 10"),
        ("max_steps: 1e1", "max_steps: 0", "stages.dpo.max_steps", "or -1", ""),
        ("max_steps: 1e1", "max_steps: 1.5", "stages.dpo.max_steps", "whole number", ""),
        ("lora_r: 8", "lora_r: 0", "model.lora.lora_r", "at least 1", ""),
        ("lora_r: 8", "lora_target_modules: []", "model.lora.lora_target_modules", "empty", ""),
        ("lora: {", "dtype: bf16\n  lora: {", "model.dtype", "bfloat16", "'bfloat16'"),
        ("name: quickstart", "name: 5", "name", "must be text", "quotes"),
        ("name: quickstart", "name: a b", "name", "no name", "letters"),
        ("data: [demos]", "data: [demos, demos]", "stages.sft.data", "twice", ""),
        ("data: [demos]", "data: []", "stages.sft.data", "empty", ""),
        ("kind: sft", "kind: dop", "stages.sft.kind", "unknown kind", "'dpo'"),
        ("kind: sft, ", "", "stages.sft", "no 'kind'", "pretrain, sft"),
        ("kind: pretrain, data: corpus", "kind: pretrain", "stages.base.data", "missing", "data set"),
        ("{kind: pretrain, data: corpus}", "later", "stages.base", "mapping", ""),
        ("beta: 0.1", "penalties: {x: 1}", "stages.dpo.penalties", "no such key", "under 'stages.NAME.reward'"),
        ("beta: 0.1", "base_url: {x: 1}", "stages.dpo.base_url", "not in this version", ""),
        ("beta: 0.1", "require: {eval/loss: {}}", "stages.dpo.require.eval/loss", "at least one of 'min'", ""),
        ("beta: 0.1", "require: {eval/loss: {most: 1}}", "stages.dpo.require.eval/loss.most", "unknown key", ""),
        ("beta: 0.1", "after: bsae", "stages.dpo.after", "no stage 'bsae'", "'base'"),
        ("beta: 0.1", "after: dpo", "stages.dpo.after", "names itself", ""),
        ("stages:", "rounds: {count: 3}\nstages:", "rounds.stages", "missing", "a round"),
        ("stages:", "rounds: 3\nstages:", "rounds", "must be a mapping", ""),
    ],
)
def test_values(problems, good, old, new, key, message, remedy):
    found = problems(good.replace(old, new, 1))
    assert message in found[key].message
    assert remedy in found[key].remedy
    assert "Input should" not in str(found[key]), "pydantic's words are not ours"


@pytest.mark.parametrize(
    ("kind", "ours"), [("rm", "reward"), ("reward_modeling", "reward"), ("rl", "ppo"), ("pp", "ppo")]
)
def test_kinds_of_others_are_translated(problems, good, kind, ours):
    assert problems(good.replace("kind: sft", f"kind: {kind}"))["stages.sft.kind"].remedy == f"did you mean '{ours}'?"


@pytest.mark.parametrize("kind", LATER_KINDS)
def test_later_kinds_are_refused_by_name(problems, good, kind):
    found = problems(good.replace("kind: sft", f"kind: {kind}"))
    assert f"kind '{kind}' is not in this version" in found["stages.sft.kind"].message
    assert len(found) == 1


@pytest.mark.parametrize(
    ("old", "new", "key", "message", "remedy"),
    [
        ("init: sft", "init: sfft", "stages.dpo.init", "no stage 'sfft'", "'sft'"),
        ("init: sft", "init: eval", "stages.dpo.init", "'evaluate'", "sft, dpo, kto, ppo, grpo, rloo or distill"),
        ("init: sft", "init: dpo", "stages.dpo.init", "names itself", ""),
        ("[base, sft, dpo]", "[sft, dop]", "stages.eval.policies[1]", "no stage 'dop'", "'dpo'"),
        ("baseline: sft", "baseline: sfft", "stages.eval.baseline", "not one of 'policies'", "'sft'"),
        ("data: [demos]", "data: [dems]", "stages.sft.data[0]", "no data set 'dems'", "'demos'"),
        ("data: [demos]", "data: dpo", "stages.sft.data", "gives no data", ""),
        ("prompts: prefs", "prompts: pref", "stages.eval.prompts", "no data set", "'prefs'"),
        ("reward: gold", "reward: glod", "stages.eval.reward", "unknown reward", "'gold'"),
        ("reward: gold", "reward: sft", "stages.eval.reward", "scores nothing", "'gold'"),
        ("path: base", "path: bse", "model.model_name_or_path", "no stage 'bse'", "'base'"),
        ("path: base", "path: sft", "model.model_name_or_path", "'sft'", "init: sft"),
        ("path: base", "path: org/model", "stages.eval.policies[0]", "not the base", "model_name_or_path: base"),
        ("data: prefs, prompts: prefs, ", "", "stages.eval", "nothing to answer", "data set"),
    ],
)
def test_references(problems, good, old, new, key, message, remedy):
    found = problems(good.replace(old, new, 1))
    assert message in found[key].message
    assert remedy in found[key].remedy


def test_cycle_is_drawn(problems, good):
    text = good.replace("data: [demos]", "init: c, data: [demos]") + "  c: {kind: sft, init: dpo, data: demos}\n"
    found = problems(text)
    (cycle,) = [problem for problem in found.values() if "need each other" in problem.message]
    assert "dpo → sft → c → dpo" in cycle.message
    assert cycle.where.endswith(f":{line_of(text, 'dpo: {')}")


@pytest.mark.parametrize(
    ("old", "new", "key", "message"),
    [
        ("data: corpus}", "data: corpus, hidden_size: 130}", "stages.base.hidden_size", "heads"),
        ("max_length: 128", "max_length: 4096", "stages.sft.max_length", "256 positions"),
        ("beta: 0.1", "label_smoothing: 0.1", "stages.dpo.label_smoothing", "does not use"),
        ("init: sft, data: prefs", "init: sft, data: demos", "stages.dpo.data", "no pairs"),
        ("path: toy, name: corpus", "path: org/x, noise: 0.1", "data.corpus.noise", "toy world only"),
        ("name: corpus", "name: corpuss", "data.corpus.name", "no 'corpuss'"),
        ("name: corpus", "columns: {a: b}", "data.corpus.columns", "nothing in the toy world"),
        ("reward: gold", "max_length: 64, max_new_tokens: 64", "stages.eval.max_new_tokens", "no room"),
    ],
)
def test_rules_between_keys(problems, good, old, new, key, message):
    assert message in problems(good.replace(old, new, 1))[key].message


def test_gold_needs_the_toy_world(problems, good):
    found = problems(
        good.replace("prefs: {path: toy, name: preferences, max_samples: 200, noise: 0.1}", "prefs: {path: a/b}")
    )
    assert "toy world only" in found["stages.eval.reward"].message


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("max_steps: 1e1", "max_steps: 10, warmup_steps: 20", "never reached"),
        ("max_steps: 1e1", "lr_scheduler_type: constant, warmup_steps: 5", "constant_with_warmup"),
        ("max_steps: 1e1", "max_steps: 10, num_train_epochs: 3", "ignored"),
        ("beta: 0.1", "loss_type: cdpo", "same as 'sigmoid'"),
        ("data:\n", "data:\n  spare: {path: toy}\n", "no stage uses"),
    ],
)
def test_warnings(write, good, old, new, word):
    (warning,) = load(write(good.replace(old, new, 1))).warnings
    assert word in warning and "recipe.yaml:" in warning


def test_all_problems_come_in_one_list_in_the_order_of_the_file(write, good):
    text = (
        good.replace("name: quickstart", "nme: x").replace("lora_r: 8", "lora_r: 0").replace("noise: 0.1", "noise: 9")
    )
    text = (
        text.replace("init: sft", "init: nope").replace("beta: 0.1", "pref_beta: 1").replace("name: corpus", "nme: 1")
    )
    text += "  base: {kind: sft}\n  x: {kind: audit}\n"
    with pytest.raises(RecipeError) as caught:
        load(write(text), ["stages.sft.max_steps=-5"])
    keys = [problem.path for problem in caught.value.problems]
    assert set(keys) == {
        "nme", "model.lora.lora_r", "data.corpus.nme", "data.prefs.noise", "stages.dpo.init", "stages.dpo.pref_beta",
        "stages.base", "stages.x.kind", "stages.sft.max_steps",
    }  # fmt: skip
    lines = [int(problem.where.rpartition(":")[2]) for problem in caught.value.problems[:-1]]
    assert lines == sorted(lines)
    assert caught.value.problems[-1].where == "--set stages.sft.max_steps=-5"


class TestOverrides:
    def test_values_are_yaml_and_the_last_wins(self, write, good):
        loaded = load(
            write(good),
            [
                "stages.dpo.beta=0.5",
                "stages.dpo.beta=2e-1",
                "stages.sft.data=[demos, prefs]",
                "tracking.wandb.project=p",
            ],
        )
        assert loaded.recipe.stages["dpo"].beta == 0.2
        assert loaded.recipe.stages["sft"].data == ("demos", "prefs")
        assert loaded.recipe.tracking.wandb.project == "p"

    def test_names_with_dots(self, write, good):
        text = good.replace("dpo:", "dpo-0.1:").replace("sft, dpo]", "sft, dpo-0.1]")
        assert load(write(text), ["stages.dpo-0.1.beta=0.3"]).recipe.stages["dpo-0.1"].beta == 0.3

    @pytest.mark.parametrize(
        ("override", "words"),
        [
            ("beta", "key=value"),
            ("=3", "key=value"),
            ("stages.dop.beta=1", "did you mean 'dpo'"),
            ("stages.dpo.betta=1", "did you mean 'beta'"),
            ("stages.dpo.beta=[", "cannot be read"),
            ("stages.dpo.beta=-1", "above 0"),
            ("name.x=1", "single value"),
            ("stages.eval.policies.x=1", "a list"),
            ("nonsense.x.y=1", "unknown key"),
        ],
    )
    def test_wrong_ones_are_named(self, write, good, override, words):
        with pytest.raises(RecipeError, match="--set") as caught:
            load(write(good), [override])
        assert words in str(caught.value)


class TestMachine:
    def test_variables_are_filled_after_parsing(self, write, good, monkeypatch):
        monkeypatch.setenv("PREFOPT_X", "a: {b} #\n- c")
        loaded = load(write(good.replace("model:", 'description: "x ${PREFOPT_X}"\nmodel:', 1)))
        assert loaded.recipe.description == "x a: {b} #\n- c"

    @pytest.mark.parametrize(
        ("value", "message", "remedy"),
        [
            ("${PREFOPT_NONE}/x", "PREFOPT_NONE is not set", "export PREFOPT_NONE="),
            ("${PREFOPT_EMPTY}/x", "PREFOPT_EMPTY is empty", "export PREFOPT_EMPTY="),
            ("${A:-b}", "is not ${NAME}", "defaults"),
            ("${A", "is not ${NAME}", ""),
        ],
    )
    def test_variables_that_cannot_be_filled(self, problems, good, monkeypatch, value, message, remedy):
        monkeypatch.delenv("PREFOPT_NONE", raising=False)
        monkeypatch.setenv("PREFOPT_EMPTY", "")
        text = good.replace("demos: {path: toy, name: demonstrations,", f'demos: {{path: "{value}",')
        found = problems(text)
        assert message in found["data.demos.path"].message and remedy in found["data.demos.path"].remedy
        assert len(found) == 1

    def test_number_from_a_variable_is_explained(self, problems, good, monkeypatch):
        monkeypatch.setenv("PREFOPT_BETA", "0.1")
        assert "--set" in problems(good.replace("beta: 0.1", "beta: '${PREFOPT_BETA}'"))["stages.dpo.beta"].remedy

    def test_local_paths_start_at_the_recipe(self, write, good, tmp_path, monkeypatch):
        (tmp_path / "rows.jsonl").write_text("{}\n")
        text = good.replace("demos: {path: toy, name: demonstrations,", "demos: {path: rows.jsonl,")
        path = write(text)
        monkeypatch.chdir("/")
        assert load(path).recipe.data["demos"].path == str(tmp_path / "rows.jsonl")

    @pytest.mark.parametrize(
        "value", ["./none.jsonl", "/none/at/all", "~/none.jsonl", "row.jsonl", "a/b/c", "http://a/b"]
    )
    def test_local_paths_that_are_not_there(self, problems, good, tmp_path, value):
        (tmp_path / "rows.jsonl").write_text("{}\n")
        found = problems(good.replace("demos: {path: toy, name: demonstrations,", f'demos: {{path: "{value}",'))
        assert set(found) == {"data.demos.path"}
        assert value != "row.jsonl" or "'rows.jsonl'" in found["data.demos.path"].remedy

    def test_hub_ids_are_left_alone(self, write, good):
        text = good.replace("demos: {path: toy, name: demonstrations,", "demos: {path: Anthropic/hh-rlhf,")
        assert load(write(text)).recipe.data["demos"].path == "Anthropic/hh-rlhf"

    def test_model_folder_without_a_model(self, problems, good, tmp_path):
        (tmp_path / "empty").mkdir()
        found = problems(good.replace("model_name_or_path: base", "model_name_or_path: ./empty"))
        assert "config.json" in found["model.model_name_or_path"].message


def loads_or_refuses(path, overrides=()):
    try:
        return load(path, overrides).recipe is not None
    except RecipeError as error:
        return bool(error.problems) and all(problem.message for problem in error.problems)


fuzz = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused_in_words(tmp_path, data):
    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    assert loads_or_refuses(path)


tokens = st.sampled_from(
    ["", "~", "[]", "{}", "[[1]]", "{a: b}", "-1", "1e999", "010", "yes", "&x", "*x", "<<: *x", "${X}", "'", "kind",
     "sft", "dpo", "eval", "base", "toy", "\n", "  ", "\t", ":", ", ", "9" * 50, ".nan", "é", "\x00", "!!int"]
)  # fmt: skip


@fuzz
@given(st.lists(st.tuples(st.integers(0, len(GOOD)), st.integers(0, 12), tokens), min_size=1, max_size=4))
def test_mutated_recipes_are_refused_in_words(tmp_path, edits):
    text = GOOD
    for start, length, token in edits:
        text = text[:start] + token + text[start + length :]
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    assert loads_or_refuses(path)


KEYS = ["name", "seed", "model", "data", "tracking", "stages", "model.lora", "model.lora.lora_r", "data.prefs",
        "data.prefs.path", "stages.dpo.init", "stages.dpo.data", "stages.eval.policies", "stages.sft.kind",
        "stages.eval.reward", "stages.eval.baseline", "stages.base.hidden_size", "stages.base.num_attention_heads",
        "stages.dpo.warmup_steps", "model.model_name_or_path", "stages.dpo.loss_type", "new.key"]  # fmt: skip
VALUES = [
    "",
    "1",
    "-1",
    "1e400",
    "true",
    "no",
    "x",
    "[x, 1]",
    "{a: 1}",
    "[[]]",
    "null",
    "'${HOME}'",
    "9" * 40,
    "sft",
    "gold",
]


@fuzz
@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)), min_size=1, max_size=3))
def test_any_value_anywhere_is_accepted_or_refused_in_words(tmp_path, changes):
    path = tmp_path / "r.yaml"
    path.write_text(GOOD, encoding="utf-8")
    assert loads_or_refuses(path, [f"{key}={value}" for key, value in changes])
