"""Functions of installed packages: found by name, called as TRL calls them, and held to what they promise."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from prefopt.errors import DataError, EnvironmentFault, InputError
from prefopt.recipe.registered import registered
from prefopt.records import Message, Prompt
from prefopt.rewards.functions import FunctionScorer, load_function
from tests.installed import BREVITY, install

PROMPT: Prompt = (Message("system", "be brief"), Message("user", "how was it?"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] in ("my_rewards", "others")]:
        del sys.modules[name]


def values(function: object, texts: list[str]) -> list[float]:
    return [score.value for score in FunctionScorer("f", function).score([PROMPT] * len(texts), texts)]


def test_an_installed_function_is_found_by_name_and_scores(site: Path) -> None:
    folder = install(site, {"brevity": BREVITY})
    found = registered("brevity")
    assert (found.distribution, found.version, found.file) == ("my_rewards", "1.2.0", folder / "brevity.py")
    lines: list[str] = []
    scorer = load_function(found, lines.append)
    assert [score.value for score in scorer.score([PROMPT] * 3, ["", "abc", "a"])] == [0.0, -3.0, -1.0]
    assert scorer.name == "brevity" and lines == []


def test_finding_a_function_runs_none_of_its_package(site: Path) -> None:
    folder = install(site, {"brevity": BREVITY})
    (folder / "__init__.py").write_text("raise RuntimeError('the package was imported')\n")
    (folder / "brevity.py").write_text("raise RuntimeError('the module was imported')\n")
    assert registered("brevity").file == folder / "brevity.py"
    with pytest.raises(InputError, match=r"my_rewards.brevity:reward\) cannot be imported: RuntimeError") as caught:
        load_function(registered("brevity"), print)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_unknown_name_comes_with_the_registered_ones(site: Path) -> None:
    install(site, {"brevity": BREVITY, "politeness": BREVITY})
    with pytest.raises(InputError, match="no installed package registers a reward function 'brevty'") as caught:
        registered("brevty")
    assert "did you mean 'brevity'?" in caught.value.remedy
    with pytest.raises(InputError) as caught:
        registered("xyzzy")
    assert "brevity, politeness" in caught.value.remedy


def test_two_packages_may_not_register_the_same_name_and_one_on_the_path_twice_is_one(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, {"brevity": BREVITY})
    monkeypatch.syspath_prepend(str(site))
    assert registered("brevity").distribution == "my_rewards"
    install(site, {"brevity": BREVITY}, package="others")
    with pytest.raises(InputError, match="more than once: my_rewards, others"):
        registered("brevity")


def test_a_module_that_is_gone_is_said(site: Path) -> None:
    (install(site, {"brevity": BREVITY}) / "brevity.py").unlink()
    importlib.invalidate_caches()
    with pytest.raises(InputError, match=r"is to be in my_rewards\.brevity, and there is no such file"):
        registered("brevity")


@pytest.mark.parametrize(
    ("source", "text"),
    [("reward = 3\n", "is 3, and not a function"), ("async def reward(**kw):\n    return []\n", "is asynchronous")],
)
def test_what_cannot_be_called_is_refused(site: Path, source: str, text: str) -> None:
    install(site, {"brevity": source})
    with pytest.raises(InputError, match=text):
        load_function(registered("brevity"), print)


def test_a_function_from_another_file_is_taken_and_told(site: Path) -> None:
    folder = install(site, {"brevity": "from my_rewards.inner import reward\n"})
    (folder / "inner.py").write_text(BREVITY)
    lines: list[str] = []
    load_function(registered("brevity"), lines.append)
    assert len(lines) == 1 and "is defined in inner.py" in lines[0]


def test_it_is_called_with_messages_and_texts_by_name() -> None:
    seen: dict[str, object] = {}

    def reward(**given: object) -> list[float]:
        seen.update(given)
        return [1.0, 2.0]

    assert values(reward, ["a", "b"]) == [1.0, 2.0]
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "how was it?"}]
    assert json.loads(json.dumps(seen)) == {"prompts": [messages, messages], "completions": ["a", "b"]}
    assert values(lambda **given: pytest.fail("nothing to score"), []) == []


@pytest.mark.parametrize(
    "found", [[1, 2.5], (1, 2.5), np.array([1, 2.5]), np.float32([1, 2.5]), torch.tensor([1, 2.5])]
)
def test_numbers_of_any_kind_are_taken(found: object) -> None:
    assert values(lambda prompts, completions: found, ["a", "b"]) == [1.0, 2.5]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ([1.0], "answered 1 values for 2 completions"),
        ([1.0, 2.0, 3.0], "answered 3 values for 2 completions"),
        ([1.0, None], "answered None for completion 1"),
        ([math.nan, 1.0], "answered nan for completion 0"),
        ([1.0, math.inf], "answered inf for completion 1"),
        ([1.0, "2"], "answered '2' for completion 1"),
        ([1.0, [2.0, 3.0]], r"answered \[2.0, 3.0\] for completion 1"),
        (np.ones((2, 2)), "for completion 0"),
        (None, "answered None, not a list"),
        (3.0, "answered 3.0, not a list"),
        ("ab", "answered 'ab', not a list"),
        ({"a": 1, "b": 2}, "not a list"),
    ],
)
def test_what_is_not_one_finite_number_for_each_completion_is_refused(found: object, text: str) -> None:
    with pytest.raises(DataError, match=f"the reward function 'f' {text}" if text[0] == "a" else text):
        values(lambda prompts, completions: found, ["a", "b"])


def test_an_error_inside_is_told_with_its_cause_and_ours_go_through() -> None:
    def broken(prompts: object, completions: object) -> None:
        raise KeyError("colour")

    with pytest.raises(InputError, match="the reward function 'f' raised KeyError: 'colour'") as caught:
        values(broken, ["a"])
    assert isinstance(caught.value.__cause__, KeyError)

    def down(prompts: object, completions: object) -> None:
        raise EnvironmentFault("no network")

    with pytest.raises(EnvironmentFault, match="no network"):
        values(down, ["a"])


def test_a_package_that_pip_installed_is_found_in_a_new_process(tmp_path: Path) -> None:
    install(tmp_path, {"brevity": BREVITY})
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + (
        "from prefopt.recipe.registered import registered\n"
        "found = registered('brevity'); print(found.name, found.distribution, found.version)\n"
        "print('torch' in sys.modules, 'my_rewards' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["brevity", "my_rewards", "1.2.0", "False", "False"], done.stderr
