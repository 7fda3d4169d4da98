"""Rules between the keys of distill stages: each is fine by itself, and together they are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prefopt.recipe.parts import Fault, Part
from prefopt.recipe.references import names_in

_OF_DISTRIBUTIONS = ("soft", "on_policy")


def _replay(part: Part) -> Iterator[Fault]:
    """Real data keeps a student from learning what it believes already, again and again."""
    if part.get("replay_share") and not names_in(part.get("demonstrations")):
        message = "nothing is named to replay, and a student of its own answers alone forgets the rest"
        yield Fault("demonstrations", message, "name real data, or write `replay_share: 0`")


def _something_to_learn(part: Part) -> Iterator[Fault]:
    """A student that reads what its teacher reads, and is its teacher, has nothing to learn from distributions."""
    own = not part.written("teacher") or part.get("teacher") == part.get("init")
    same = not part.written("teacher_context") and not part.written("student_context")
    if part.get("target") in _OF_DISTRIBUTIONS and own and same and not part.written("teacher_model_name_or_path"):
        message = f"'{part.get('target')}' compares the student with itself under the same context: nothing is learned"
        yield Fault("target", message, "write 'teacher_context' or 'teacher', or `target: sample` with a 'reward'")
    if part.written("teacher") and part.written("teacher_model_name_or_path"):
        message = "'teacher' and 'teacher_model_name_or_path' are two teachers"
        yield Fault("teacher", message, "leave one of them out")


def _answers(part: Part) -> Iterator[Fault]:
    """How the teacher answers."""
    target, samples, best = part.get("target"), int(part.get("samples_per_prompt")), part.get("best_per_prompt")
    if target == "argmax" and samples > 1:
        yield Fault("samples_per_prompt", "the likeliest answer is one", "write 1, or `target: sample`")
    if target != "argmax" and int(part.get("num_beams")) > 1:
        yield Fault("num_beams", f"'{target}' samples, and searches for nothing", "write `target: argmax`")
    if part.given("top_k") and target not in _OF_DISTRIBUTIONS:
        yield Fault("top_k", f"'{target}' looks at no distribution", "write `target: soft`")
    if best is not None and best >= samples:
        yield Fault("best_per_prompt", f"{best} of {samples} answers are all of them", "raise 'samples_per_prompt'")
    if target == "on_policy":
        for key in ["keep"] * part.written("keep") + ["samples_per_prompt"] * (samples > 1):
            yield Fault(key, "on policy the student answers, once in every step, and nothing is chosen", "leave it out")


def _filters(part: Part) -> Iterator[Fault]:
    """Which answers are left."""
    target, keep = part.get("target"), dict(part.get("keep") or {})  # a mapping, or the default of the schema
    chosen = (
        ("best_per_prompt", part.get("best_per_prompt") is not None),
        ("keep.min_reward_quantile", bool(keep.get("min_reward_quantile"))),
    )
    for key in (key for key, wants in chosen if wants):
        if not part.written("reward"):
            yield Fault(key, "answers are chosen by a reward, and the stage has none", "add 'reward'")
        elif target == "soft":
            message = "'soft' learns the teacher's whole distribution, wherever its answers were good"
            yield Fault(key, message, "write `target: sample`, so that the chosen answers themselves are learned")
    if keep.get("costs") and target == "soft":
        message = "along the answers that are kept, 'soft' still learns how likely the teacher was to violate these"
        yield Fault("keep.costs", message, "`target: sample` learns the kept answers alone", wrong=False)


def _vectors(part: Part) -> Iterator[Fault]:
    """A soft prompt is no adapter."""
    if part.written("soft_prompt") and part.written("lora"):
        yield Fault("lora", "a soft prompt is trained, and no adapter", "leave out one of 'lora' and 'soft_prompt'")


DISTILL_RULES: tuple[Callable[[Part], Iterator[Fault]], ...] = (
    _replay,
    _something_to_learn,
    _answers,
    _filters,
    _vectors,
)
