"""The language, students and rounds of the tables about distillation, made small, and the page they are put on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from tests.learning.distill import page, rounds, students, world
from tests.learning.distill.__main__ import runs


@pytest.fixture(scope="module")
def untrained() -> PreTrainedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "STEPS", 1)
        return world.base(0)


@pytest.mark.parametrize("context", [world.NONE, world.POLICY, world.OTHER])
def test_the_context_decides_style_and_rule(context: world.Context) -> None:
    asked = world.questions(400, 3)
    rows = world.real(context, asked, 4)
    answers = [row["completion_ids"] for row in rows]
    assert world.style(answers) == pytest.approx(context.style, abs=0.02)
    assert [ids[0] for ids in answers] == [world.ruled(context, each) for each in asked]
    assert {len(ids) for ids in answers} == set(range(10, world.LONGEST + 2))
    assert all(row["prompt_ids"] == [1, *context.words, *each] for row, each in zip(rows, asked, strict=True))


def test_the_policy_says_something_else() -> None:
    asked = world.questions(400, 3)
    same = sum(world.ruled(world.POLICY, each) == world.ruled(world.NONE, each) for each in asked)
    assert same < 120 and len(world.POLICY.words) == 20
    tokenizer = world.tokenizer()
    ids = world.real(world.POLICY, asked[:1], 1)[0]["completion_ids"]
    assert tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"] == ids


def test_students_read_nothing_and_replay_stands_in_the_other_context(
    untrained: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(students, "PROMPTS", 12)
    rows = students.rows_of(untrained, students.TARGETS["soft + half replay"], 0)
    learned, replayed = rows[:12], rows[12:]
    assert len(replayed) == 12 and all(row["soft"] for row in rows)
    assert all(len(row["teacher_prompt_ids"]) - len(row["prompt_ids"]) == 20 for row in learned)
    assert all(tuple(row["prompt_ids"][1:5]) == world.OTHER.words for row in replayed)
    own = students.rows_of(untrained, students.TARGETS["on-policy reverse KL"], 0)
    assert not any("completion_ids" in row for row in own)


def test_every_table_is_made_of_what_the_runs_give(
    untrained: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import copy

    for module, name, value in (
        (students, "PROMPTS", 16), (students, "HELD_OUT", 16), (students, "SAMPLES", 2), (rounds, "PROMPTS", 16),
        (students, "OPTIONS", {**students.OPTIONS, "max_steps": 2}), (rounds, "HELD_OUT", 8), (rounds, "ROUNDS", 2),
        (rounds, "STEPS", 2),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    wanted = [run for run in runs([0]) if run.key != "speed"]
    names = ("before", "soft prompt", "better half, acc", "argmax, replace")
    made = {run.key: run.make(copy.deepcopy(untrained)) for run in wanted if any(name in run.key for name in names)}
    assert made["targets/before/0"]["drift"] == pytest.approx(0, abs=1e-6)
    loop: list[dict[str, Any]] = made["rounds/argmax, replace/0"]
    assert len(loop) == 3 and loop[0]["nll"] > 0 and loop[0]["entropy"] > 0
    # The other runs are of the same form.
    results = {run.key: made.get(run.key, loop if "rounds" in run.key else made["targets/before/0"]) for run in wanted}
    results["speed"] = {"64": {"with": 0.002, "without": 0.001, "gained": 2.0}}
    results["targets/teacher/0"] = {name: value for name, value in results["targets/before/0"].items() if name != "kl"}
    file = tmp_path / "page.md"
    file.write_text(f"before\n<!-- measured: {page.COMMAND} -->\n<!-- /measured -->\nafter\n")
    page.write(file, results, [0])
    text = file.read_text()
    assert all(f"| {name} |" in text for name in (*students.TARGETS, *rounds.LOOPS))
    assert "| 64 | 2.0 ms | 1.0 ms | 2.00 |" in text and text.startswith("before") and text.endswith("after\n")


def test_the_round_in_which_a_guard_spoke_up_is_the_first() -> None:
    quiet, loud = {"guard": None}, {"guard": "entropy"}
    assert page._tripped([[quiet, loud, loud], [quiet, quiet, quiet]]) == "1, none"
    assert page._spread([0.1, 0.3]) == "0.200 (0.100–0.300)" and page._spread([None]) == "–"
    assert page._spread([0.0, 0.0]) == "0.000" and page._spread([2e-5, 2e-5]) == "2e-05"
