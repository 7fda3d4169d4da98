"""The metrics of distillation: name, meaning, unit, better direction; a part of the table in `metrics.py`."""

from __future__ import annotations

from prefopt.tracking.cost_metrics import Better

DISTILL: tuple[tuple[str, str, str, Better | None], ...] = (
    (
        "distill/kl",
        "How far the student is from its teacher along the targets, over the whole vocabulary or the top k; of the "
        "reverse divergence on policy.",
        "nats per token",
        "lower",
    ),
    ("distill/logp", "Log-probability that the student gives to a token of its targets.", "nats per token", None),
    ("distill/entropy", "How undecided the student is about the next token along the targets.", "nats", None),
    ("distill/teacher_entropy", "How undecided the teacher is about the next token along the targets.", "nats", None),
    (
        "distill/agreement",
        "Share of the targets' tokens where the first guesses of student and teacher are the same.",
        "",
        "higher",
    ),
    ("distill/replay_loss", "Loss on the real data that is replayed.", "nats per token", "lower"),
    ("distill/own_entropy", "How undecided the student is about the next token along its own answers.", "nats", None),
    (
        "distill/real_nll",
        "Negative log-likelihood of held-out real answers, which guards compare with the origin's.",
        "nats per token",
        "lower",
    ),
    (
        "distill/drift",
        "How far the student is from what it started from on held-out real data, in other contexts.",
        "nats per token",
        "lower",
    ),
    ("distill/guard", "Whether a guard spoke up: 1 if it did.", "", "lower"),
    ("distill/prompts", "Prompts that the teacher answered, or the student on policy.", "", None),
    ("distill/targets", "Answers that are learned from, those of earlier rounds among them.", "", None),
    ("distill/kept", "Share of the teacher's new answers that the filters kept.", "", None),
    ("distill/reward", "Mean reward of the teacher's answers before they are filtered.", "", "higher"),
    ("distill/kept_reward", "Mean reward of those that were kept.", "", "higher"),
    ("distill/own_reward", "Mean reward of the student's answers to held-out prompts.", "", "higher"),
    ("distill/teacher_reward", "Mean reward of the teacher's answers to the same prompts.", "", None),
    (
        "distill/reward_ratio",
        "Mean reward of the student's answers divided by that of its teacher's, where the latter is above 0.",
        "",
        "higher",
    ),
    ("distill/replay_share", "Share of real data among the rows that are learned from.", "", None),
    (
        "distill/prompt_ratio",
        "Tokens of the teacher's prompts for a token of the student's: how far the context is compressed.",
        "",
        "higher",
    ),
    ("distill/context_tokens", "Tokens that the teacher reads more than the student, per prompt.", "tokens", None),
    (
        "distill/answer_agreement",
        "Share of held-out prompts that the student answers, greedily, word for word as the teacher does.",
        "",
        "higher",
    ),
    (
        "distill/sampling_speedup",
        "Wall time of the teacher's greedy answers to held-out prompts, divided by that of the student's, per token.",
        "",
        "higher",
    ),
    ("distill/distinct", "Share of different pairs of words in the student's answers.", "", "higher"),
    ("distill/teacher_distinct", "Share of different pairs of words in the teacher's answers.", "", None),
)
