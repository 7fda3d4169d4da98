"""A student beside its teacher, as a table for a person."""

from __future__ import annotations

from collections.abc import Mapping

from prefopt.evaluation.findings import Finding

# What is compared, the student's number, and its teacher's where there is one. No times: they differ between runs.
_ROWS = (
    ("mean reward of answers to held-out prompts", "distill/own_reward", "distill/teacher_reward"),
    ("the same greedy answer, word for word", "distill/answer_agreement", None),
    ("the same first guess of a token", "eval/distill/agreement", None),
    ("divergence from the teacher, nats per token", "eval/distill/kl", None),
    ("entropy of the next token, nats", "eval/distill/entropy", "eval/distill/teacher_entropy"),
    ("share of different pairs of words", "distill/distinct", "distill/teacher_distinct"),
    ("drift elsewhere, nats per token", "distill/drift", None),
    ("tokens of a prompt, in those of the student's", None, "distill/prompt_ratio"),
)


def beside_teacher(metrics: Mapping[str, float]) -> Finding:
    """The table, with the rows that a stage has numbers for.

    Args:
        metrics: Of the stage, by the names of `prefopt.tracking.metrics`.
    """

    def cell(name: str | None) -> str:
        return f"{metrics[name]:.3f}" if name is not None and name in metrics else "–"

    rows = tuple(
        (what, "1.000" if student is None else cell(student), cell(teacher))
        for what, student, teacher in _ROWS
        if (student or teacher) in metrics
    )
    return Finding("The student beside its teacher", ("", "student", "teacher"), rows)
