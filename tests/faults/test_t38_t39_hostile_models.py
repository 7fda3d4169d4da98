"""Checkpoints, models and data that would run code when they are opened in the usual way: nothing runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import PrefoptError
from prefopt.store.checkpoints import newest_verified
from tests.faults.injection import forked
from tests.faults.runs import RECIPE, Experiment
from tests.faults.trained import train
from tests.tiny import tiny_llama, tiny_tokenizer

NO_CODE = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch CANARY') }}"


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def bomb(canary: Path) -> bytes:
    return pickle.dumps(Bomb(canary), protocol=2)  # what torch would read


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def on_model(tmp_path: Path, model: Path, **changes: str) -> Experiment:
    recipe = RECIPE.replace("model_name_or_path: base", f"model_name_or_path: {model}")
    start, end = recipe.index("  base:\n"), recipe.index("  sft: ")
    recipe = recipe[:start] + recipe[end:]
    for old, new in changes.items():
        recipe = recipe.replace(old, new)
    return Experiment(tmp_path / "experiment", recipe)


def failed(experiment: Experiment, **options: Any) -> tuple[int, str]:
    ended = experiment.run(only=("sft",), **options)
    assert not ended.error, ended.error
    code, said = ended.value["errors"]["sft"]
    assert len(said.splitlines()) == 1, said
    return code, said


def test_t38_the_bomb_goes_off_where_it_is_unpickled(bomb: bytes, canary: Path) -> None:
    forked(lambda: pickle.loads(bomb))
    assert canary.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        *(
            pytest.param(name, marks=pytest.mark.sweep)
            for name in ("scheduler.pt", "rng_state.pth", "training_args.bin")
        ),
    ],
)
def test_t38_a_pickle_in_a_checkpoint_is_not_opened(tmp_path: Path, bomb: bytes, canary: Path, name: str) -> None:
    ended = forked(lambda: train("sft", tmp_path / "run", save_total_limit=2))
    assert not ended.error, ended.error
    newest = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    (newest / name).write_bytes(bomb)
    again = forked(lambda: train("sft", tmp_path / "run", save_total_limit=2))
    assert not again.error and again.value["from"] == 1 and again.value["sha256"] == ended.value["sha256"]
    assert not canary.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", pytest.param("scheduler.pt", marks=pytest.mark.sweep)])
def test_t38_a_pickle_that_its_manifest_vouches_for_is_not_run_either(
    tmp_path: Path, bomb: bytes, canary: Path, name: str
) -> None:
    """Whoever can write the manifest as well still runs no code."""
    from prefopt.store.checkpoints import commit_checkpoint

    ended = forked(lambda: train("sft", tmp_path / "run", save_total_limit=2))
    assert not ended.error, ended.error
    newest = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    (newest / name).write_bytes(bomb)
    (newest / "manifest.json").unlink()
    shutil.copytree(newest, tmp_path / "run" / "checkpoints" / "tmp-2" / "checkpoint-2")
    commit_checkpoint(tmp_path / "run" / "checkpoints" / "tmp-2" / "checkpoint-2", newest, 2, {})
    state = newest / "trainer_state.json"
    assert newest_verified(newest.parent, lambda text: None) == newest and state.is_file()
    # It is the last checkpoint of its run: one more step is asked for, so that its state is opened.
    opened = forked(lambda: train("sft", tmp_path / "run", save_total_limit=2, max_steps=3))
    assert "UnpicklingError" in opened.error and "weights_only" in opened.error, opened
    assert not canary.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_t38_a_model_of_pickles_is_refused(tmp_path: Path, model: Path, bomb: bytes, canary: Path, name: str) -> None:
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(bomb)
    code, said = failed(on_model(tmp_path, model))
    assert code == 5 and name in said and "pickled" in said and not canary.exists(), said


@pytest.mark.slow
def test_t38_a_pickle_beside_safe_weights_is_left_alone(tmp_path: Path, model: Path, bomb: bytes, canary: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(bomb)
    ended = on_model(tmp_path, model).run(only=("sft",))
    assert not ended.error and ended.value["states"]["sft"] == "done", ended
    assert not canary.exists()


@pytest.mark.slow
def test_t38_a_pickle_by_the_name_of_safe_weights_is_refused(
    tmp_path: Path, model: Path, bomb: bytes, canary: Path
) -> None:
    (model / "model.safetensors").write_bytes(bomb)
    code, said = failed(on_model(tmp_path, model))
    assert code == 5 and str(model) in said and not canary.exists(), said


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows.arrow", "rows.jsonl.gz"])
def test_t38_a_pickle_as_data_is_an_error_of_the_data(tmp_path: Path, bomb: bytes, canary: Path, name: str) -> None:
    from prefopt.data.sources import read_rows
    from prefopt.recipe.schema import DataSpec

    path = tmp_path / name
    path.write_bytes(bomb)
    with pytest.raises(PrefoptError) as error:
        list(read_rows(DataSpec(path=str(path)), lambda line: None))
    assert error.value.exit_code == 2 and name in str(error.value) and not canary.exists()


# -- code in the folder of a model or of data --------------------------------------------------------------------------


@pytest.fixture
def with_code(model: Path, canary: Path) -> Path:
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {
        "AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"
    }}  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text(f"import os\nos.system(\"touch '{canary}'\")\nEvilConfig = EvilModel = None\n")
    return model


@pytest.mark.slow
@pytest.mark.parametrize("agreed", ["nobody", "the recipe", "the command"])
def test_t39_code_of_a_model_does_not_run_without_both_agreements(
    tmp_path: Path, with_code: Path, canary: Path, agreed: str
) -> None:
    changes = {"dtype: float32": "dtype: float32, trust_remote_code: true"} if agreed == "the recipe" else {}
    experiment = on_model(tmp_path, with_code, **changes)
    code, said = failed(experiment, trust_remote_code=agreed == "the command")
    assert code == 2 and str(with_code) in said and "--trust-remote-code" in said and not canary.exists(), said


@pytest.mark.slow
def test_t39_with_both_agreements_it_would_run(tmp_path: Path, with_code: Path, canary: Path) -> None:
    experiment = on_model(tmp_path, with_code, **{"dtype: float32": "dtype: float32, trust_remote_code: true"})
    failed(experiment, trust_remote_code=True)
    assert canary.exists()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["the tokenizer", "a file"])
def test_t39_a_chat_template_cannot_reach_the_system(tmp_path: Path, model: Path, canary: Path, where: str) -> None:
    template = NO_CODE.replace("CANARY", str(canary))
    changes = {}
    if where == "a file":
        (tmp_path / "evil.jinja").write_text(template)
        changes = {"dtype: float32": f"dtype: float32, chat_template: {tmp_path / 'evil.jinja'}"}
    else:
        (model / "chat_template.jinja").write_text(template)
    code, said = failed(on_model(tmp_path, model, **changes))
    assert code in (2, 5) and not canary.exists(), said


def test_t39_a_script_beside_data_does_not_run(tmp_path: Path, canary: Path) -> None:
    from prefopt.data.sources import read_rows
    from prefopt.recipe.schema import DataSpec

    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text(f"import os\nos.system(\"touch '{canary}'\")\n")
    with pytest.raises(PrefoptError):
        list(read_rows(DataSpec(path=str(folder)), lambda line: None))
    (folder / "train.jsonl").write_text('{"text": "x"}\n')
    assert [row.row for row in read_rows(DataSpec(path=str(folder)), lambda line: None)] == [{"text": "x"}]
    assert not canary.exists()
