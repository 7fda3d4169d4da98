"""What a stage on several processes is started with, and what is refused before."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from experiment import REGISTRY, Experiment, alive

from prefopt.errors import EnvironmentFault, InputError, RecipeError
from prefopt.pipeline import launch
from prefopt.pipeline.graph import nodes
from prefopt.pipeline.keys import Keys
from prefopt.recipe.bundled import bundled_recipes, recipes_folder
from prefopt.recipe.load import load
from prefopt.recipe.schema import AccelerateSpec
from prefopt.store.hashing import HashCache
from tests.end_to_end.small import ROOT

CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
TYPES = {
    "ddp": DistributedType.MULTI_GPU,
    "ddp_cpu": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
    "deepspeed_zero3": DistributedType.DEEPSPEED,
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_what_ships(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig) and config.distributed_type == TYPES[path.stem]
    assert config.num_processes == 2 and config.mixed_precision == "no"
    assert config.use_cpu is (path.stem == "ddp_cpu")
    known = vars(launch_command_parser().parse_args(["x.py"]))
    assert {key for key in config.fsdp_config if key not in known} == set()
    assert {key for key in config.deepspeed_config if key not in known} == set()
    assert str(config.fsdp_config.get("fsdp_version", 2)) == "2"
    assert config.deepspeed_config.get("zero_stage") == {"deepspeed_zero2": 2, "deepspeed_zero3": 3}.get(path.stem)
    launch.read_config(path)


def test_all_of_them_ship_and_none_is_a_recipe() -> None:
    assert {path.stem for path in CONFIGS} == set(TYPES)
    folder = recipes_folder()
    assert folder is not None and folder == ROOT / "recipes"
    assert not {recipe.name for recipe in bundled_recipes()} & set(TYPES)
    assert '"share/prefopt/recipes/accelerate" = ["recipes/accelerate/*.yaml"]' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [("mixed_precision: bf16", "model.dtype"), ("num_machines: 2", "one machine"), ("[]", "no configuration"),
     ("a: [", "not YAML")],
)  # fmt: skip
def test_a_configuration_that_a_stage_cannot_have_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError) as refused:
        launch.read_config(tmp_path / "x.yaml")
    assert words in str(refused.value)


def digest(experiment: Experiment, *overrides: str) -> str:
    recipe = load(experiment.recipe, overrides).recipe
    node = next(node for node in nodes(recipe) if node.name == "sft")
    return Keys(recipe, REGISTRY, HashCache(None)).of(node, {name: "0" * 64 for name in node.inputs}).digest


def test_the_number_of_processes_is_in_the_key_and_how_they_share_is_not(experiment: Experiment) -> None:
    for name in ("a.yaml", "b.yaml"):
        (experiment.folder / name).write_text("use_cpu: true")
    alone = digest(experiment)
    assert digest(experiment, "stages.sft.accelerate.num_processes=1") == alone
    assert digest(experiment, "stages.sft.accelerate.config_file=a.yaml") == alone
    two = digest(experiment, "stages.sft.accelerate.num_processes=2")
    assert two not in (alone, digest(experiment, "stages.sft.accelerate.num_processes=3"))
    shared = ("stages.sft.accelerate.num_processes=2", "stages.sft.accelerate.config_file=b.yaml")
    assert digest(experiment, *shared) == two


def test_a_configuration_lies_beside_the_recipe(experiment: Experiment) -> None:
    with pytest.raises(RecipeError, match=r"there is no .*missing\.yaml"):
        load(experiment.recipe, ("stages.sft.accelerate.config_file=missing.yaml",))
    (experiment.folder / "given.yaml").write_text("use_cpu: true")
    recipe = load(experiment.recipe, ("stages.sft.accelerate.config_file=given.yaml",)).recipe
    assert recipe.stages["sft"].accelerate.config_file == str(experiment.folder / "given.yaml")


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    two = AccelerateSpec(num_processes=2)
    monkeypatch.setattr(launch, "_devices", lambda: 1)
    with pytest.raises(EnvironmentFault, match="2 processes, and this machine has 1 CUDA"):
        launch.launch_command("sft", two, "x")
    monkeypatch.setattr(launch, "_devices", lambda: 0)
    command, environment = launch.launch_command("sft", two, "x")
    assert command[command.index("--config_file") + 1].endswith("recipes/accelerate/ddp_cpu.yaml")
    assert environment["ACCELERATE_USE_CPU"] == "true" and environment["CUDA_VISIBLE_DEVICES"] == ""


ON_TWO = "stages.sft.accelerate.num_processes=2"


@pytest.mark.slow
def test_the_first_rank_writes_and_the_stages_process_commits(experiment: Experiment) -> None:
    assert experiment.run(ON_TWO, only=("base", "sft")).exit_code == 0
    assert experiment.count("sft start") == 1 and ("sft", 6) in experiment.listener.steps
    assert "sft: 2 processes by accelerate launch" in experiment.listener.messages
    on_two = experiment.adapter("sft").read_text()
    experiment.run(only=("sft",))
    assert experiment.adapter("sft").read_text() == on_two


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "words", "code"),
    [("bug", "ZeroDivisionError: a bug", 1), ("diverge", "loss is nan", 4), ("kill", "without a word", 3)],
)
def test_what_one_rank_raises_ends_the_others_and_is_the_stages_error(
    experiment: Experiment, what: str, words: str, code: int
) -> None:
    experiment.behave({"sft": {"when": 2, "what": "hang", "other_rank": what}})
    start = time.monotonic()
    summary = experiment.run(ON_TWO, only=("base", "sft"))
    assert time.monotonic() - start < 60 and summary.exit_code == code
    assert words in str(summary.errors[0])
    hangs = [line for line in experiment.lines() if line.startswith("sft hangs")]
    assert not any(alive(int(line.split()[-1])) for line in hangs)
