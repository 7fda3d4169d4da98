"""From run folders to the policies that `prefopt compare` compares: which stage, which scores, which seeds.

Imports no torch. Scores are believed only where the artefact is what its manifest says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from prefopt.errors import InputError, IntegrityError
from prefopt.evaluation.compare import Comparison, Entry, compare
from prefopt.pipeline.keys import KEY_FILE
from prefopt.recipe.layout import closest
from prefopt.recipe.references import scorers_of
from prefopt.recipe.rounds import unrolled_blocks
from prefopt.store import manifest as manifests
from prefopt.store.files import read_json, read_json_lines, sha256_json
from prefopt.store.manifest import Manifest
from prefopt.store.run import KEY_DIGITS, SEEDS, RunDirectory

SAMPLES = "samples.jsonl"
_HOW = "give runs/NAME, or runs/NAME:POLICY"
_SAMPLING = ("temperature", "top_p", "max_new_tokens", "max_length", "samples_per_prompt")
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class _Argument:
    """What was asked for: a run, and a policy of it or None for all."""

    given: str
    folder: Path
    policy: str | None


@dataclass(frozen=True)
class _Reward:
    """What scored an evaluation: the stage's option, and the artefact of a reward stage or empty."""

    option: str
    artefact: str


@dataclass(frozen=True)
class _Evaluation:
    """A finished evaluate stage of one seed: its options as it ran, and scores by policy and prompt."""

    stage: str
    seed: int
    baseline: str
    reward: _Reward
    options: Mapping[str, Any]
    scores: Scores

    @property
    def prompts(self) -> set[str]:
        """Keys of the prompts that any policy answered."""
        return set().union(*self.scores.values())


def compare_runs(
    arguments: Sequence[str], stage: str | None = None, reference: str | None = None
) -> tuple[Comparison, list[str]]:
    """Compare what was evaluated in run folders.

    Args:
        arguments: As of `entries_of`.
        stage: As of `entries_of`.
        reference: Label of the entry that the others are compared with; the first by default.

    Returns:
        The comparison, and what a reader must know about what went into it.

    Raises:
        InputError: As `entries_of`, and for a label that is none or policies that answered no prompt in common.
        IntegrityError: When a file is not what its manifest says.
    """
    entries, notes = entries_of(arguments, stage)
    labels = [entry.label for entry in entries]
    if len(entries) < 2:
        raise InputError(f"there is only {labels[0]} to compare", "name another run or policy to compare it with")
    if reference is not None and reference not in labels:
        raise InputError(f"--reference: there is no '{reference}'", _suggest(reference, labels))
    try:
        return compare(entries, reference=reference), notes
    except ValueError as error:
        remedy = "compare runs that evaluate on the same held-out prompts: the same data, with the same recipe seed"
        raise InputError(f"these cannot be compared: {error}", remedy) from error


def entries_of(arguments: Sequence[str], stage: str | None = None) -> tuple[list[Entry], list[str]]:
    """Read the policies to compare from run folders, the reference first.

    Several trainings of one recipe lie in the run's `seeds/SEED`; they count where they answered the same prompts.

    Args:
        arguments: RUN for every policy that was evaluated, or RUN:POLICY.
        stage: The evaluate stage; by default the last in a run's recipe that is done and has scores.

    Returns:
        Entries, and notes about what was left out or is not quite alike. Of a single RUN labels are policies and the
        first is the stage's baseline; of several they are RUN:POLICY with the folder's name, in the order given.

    Raises:
        InputError: For no such folder, stage or policy, no scores, or runs that were scored by different rewards.
        IntegrityError: When a file is not what its manifest says.
    """
    wanted = [_split(argument) for argument in arguments]
    notes: list[str] = []
    runs = {one.folder: one.given for one in wanted}
    found = {folder: _with_seeds(folder, given, stage, notes) for folder, given in runs.items()}
    _check_rewards({runs[folder]: seeds[0].reward for folder, seeds in found.items()})
    notes += _sampled_differently({runs[folder]: seeds[0].options for folder, seeds in found.items()})
    names = [folder.name for folder in runs]
    entries: dict[tuple[Path, str], Entry] = {}
    for one in wanted:
        seeds = found[one.folder]
        name = runs[one.folder] if names.count(one.folder.name) > 1 else one.folder.name
        for policy in _policies(one, seeds[0]):
            label = policy if len(runs) == 1 else f"{name}:{policy}"
            entries.setdefault((one.folder, policy), _entry(label, policy, seeds))
    return list(entries.values()), notes


# ---- what was asked for ----------------------------------------------------------------------------------------------


def _split(argument: str) -> _Argument:
    """Run and policy; a folder that is there is meant as a whole, whatever its name."""
    if Path(argument).expanduser().is_dir():
        return _Argument(argument, _absolute(argument), None)
    run, colon, policy = argument.rpartition(":")
    if colon and Path(run).expanduser().is_dir():
        return _Argument(run, _absolute(run), policy)
    raise InputError(f"{run or argument} is no folder", _HOW)


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(Path(path).expanduser()))


def _policies(one: _Argument, evaluation: _Evaluation) -> list[str]:
    if one.policy is None:
        names = list(evaluation.scores)
        return sorted(names, key=lambda name: name != evaluation.baseline)
    if one.policy not in evaluation.scores:
        raise InputError(
            f"stage {evaluation.stage} of {one.given} has no policy '{one.policy}'",
            _suggest(one.policy, list(evaluation.scores)),
        )
    return [one.policy]


def _suggest(name: str, known: Sequence[str]) -> str:
    near = closest(name, known)
    return f"did you mean '{near}'?" if near else f"there are {', '.join(known)}"


# ---- what was found --------------------------------------------------------------------------------------------------


def _entry(label: str, policy: str, seeds: Sequence[_Evaluation]) -> Entry:
    return Entry(label, {one.seed: one.scores[policy] for one in seeds if policy in one.scores})


def _with_seeds(folder: Path, given: str, stage: str | None, notes: list[str]) -> list[_Evaluation]:
    """The run's own evaluation, then that of every further seed that answered the same prompts."""
    own = _evaluation(RunDirectory(folder), given, stage)
    kept = [own]
    for path in sorted((folder / SEEDS).glob("*"), key=lambda path: (len(path.name), path.name)):
        if not path.is_dir() or path.name.startswith("."):
            continue
        where = f"{given}/{SEEDS}/{path.name}"
        try:
            further = _evaluation(RunDirectory(path), where, own.stage)
        except InputError as error:
            notes.append(f"{where} is left out: {error.message}")
            continue
        seed = int(path.name) if path.name.isdecimal() else further.seed
        if why := _left_out(further, seed, kept):
            notes.append(f"{where} is left out: {why}")
            continue
        if further.reward.option != own.reward.option:
            _check_rewards({given: own.reward, where: further.reward})
        kept.append(replace(further, seed=seed))
    if len({one.reward.artefact for one in kept}) > 1:
        notes.append(f"the seeds of {given} are scored by a reward model each, whose scores are not quite comparable")
    return kept


def _left_out(further: _Evaluation, seed: int, kept: Sequence[_Evaluation]) -> str:
    """Why a seed does not count; empty where it does."""
    if seed in {one.seed for one in kept}:
        return f"there is a run with seed {seed} already"
    own, others = kept[0].prompts, further.prompts
    if own != others:
        return f"it answered other prompts, {len(own & others)} of {len(own)} are the same"
    return ""


def _check_rewards(rewards: Mapping[str, _Reward]) -> None:
    """Refuses scores of different rewards, which have no unit in common."""
    (first, reward), *others = rewards.items()
    for name, other in others:
        if other == reward:
            continue
        if other.option == reward.option:
            what = f"by two different trainings of {reward.option}"
        else:
            what = f"by different rewards: {reward.option} and {other.option}"
        raise InputError(
            f"{first} and {name} are scored {what}",
            "evaluate both with the same reward",
        )


def _sampled_differently(options: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Notes about runs whose answers were drawn in another way, as far as both say how."""
    (first, own), *others = options.items()
    notes = []
    for name, other in others:
        differ = [key for key in _SAMPLING if key in own and key in other and own[key] != other[key]]
        if differ:
            how = ", ".join(f"{key} {own[key]} and {other[key]}" for key in differ)
            notes.append(f"{first} and {name} were sampled differently: {how}")
    return notes


# ---- what is on the disk ---------------------------------------------------------------------------------------------


def _evaluation(run: RunDirectory, given: str, stage: str | None) -> _Evaluation:
    """The evaluate stage that was asked for, or the last one that has scores."""
    blocks = _blocks(run, given)
    done = dict(_finished(run, blocks, stage))
    if not done:
        raise InputError(_unfinished(given, blocks, stage), _remedy(given, blocks, stage))
    for name, directory in reversed(done.items()):
        manifest = manifests.verify(directory, full=True)
        scores = _scores(directory / SAMPLES)
        if scores:
            baseline = str(manifest.details.get("baseline", ""))
            options = _options(directory, manifest, blocks[name])
            return _Evaluation(name, manifest.seed, baseline, _reward(options, manifest), options, scores)
    raise InputError(
        f"{given} has no scores: nothing in stage {' or '.join(done)} was scored",
        "give the stage a `reward`, and run the recipe again",
    )


def _blocks(run: RunDirectory, given: str) -> dict[str, Any]:
    """The stages of a run's recipe.

    Not judged as a recipe is before it runs: data may have moved since, and is not needed here.
    """
    if not run.recipe.is_file():
        raise InputError(f"{given} is not the folder of a run: it has no recipe.yaml", _HOW)
    try:
        tree = yaml.safe_load(run.recipe.read_text(encoding="utf-8", errors="replace"))
    except yaml.YAMLError as error:
        raise InputError(f"{run.recipe} is not valid YAML: {' '.join(str(error).split())}") from error
    blocks = unrolled_blocks(tree) if isinstance(tree, Mapping) else {}
    return {str(name): block for name, block in blocks.items()}


def _finished(run: RunDirectory, blocks: Mapping[str, Any], stage: str | None) -> Iterator[tuple[str, Path]]:
    """Evaluate stages that are done, with the folders of their artefacts, in the order of the recipe."""
    for name in _evaluates(blocks):
        key = run.current(name) if stage in (None, name) else None
        if key is None or not (run.stage(name, key) / manifests.MANIFEST).is_file():
            continue
        directory = run.stage(name, key)
        manifest = manifests.read(directory)
        if manifest.stage != name or not manifest.key.startswith(key):
            raise IntegrityError(
                f"{directory} holds the artefact of stage {manifest.stage}, key {manifest.key[:KEY_DIGITS]}"
            )
        if manifest.kind == "evaluate":
            yield name, directory


def _evaluates(blocks: Mapping[str, Any]) -> list[str]:
    return [name for name, block in blocks.items() if isinstance(block, Mapping) and block.get("kind") == "evaluate"]


def _unfinished(given: str, blocks: Mapping[str, Any], stage: str | None) -> str:
    if stage is None:
        return f"{given} has no finished evaluate stage"
    if stage not in blocks:
        return f"{given} has no stage '{stage}'"
    if stage not in _evaluates(blocks):
        return f"stage {stage} of {given} is no evaluate stage"
    return f"stage {stage} of {given} is not finished"


def _remedy(given: str, blocks: Mapping[str, Any], stage: str | None) -> str:
    names = _evaluates(blocks)
    if stage is not None and stage not in names and names:
        return _suggest(stage, names)
    if not names:
        return "add a stage of kind evaluate to the recipe, and run it"
    return f"`prefopt run {given}/recipe.yaml --out {given}` finishes it"


def _scores(path: Path) -> Scores:
    """Mean score of every policy's answers to each prompt; empty where nothing was scored."""
    answers: dict[str, dict[str, list[float]]] = {}
    for number, row in enumerate(read_json_lines(path), start=1):
        # The first artefacts named the score by the scorer of the embedded world alone.
        score = row.get("reward", row.get("gold"))
        if score is None:
            continue
        if isinstance(score, bool) or not isinstance(score, int | float) or not {"policy", "prompt"} <= row.keys():
            raise IntegrityError(f"{path}:{number} is not a sample of an evaluate stage")
        by_prompt = answers.setdefault(str(row["policy"]), {})
        by_prompt.setdefault(sha256_json(row["prompt"]), []).append(float(score))
    return {
        policy: {prompt: sum(scores) / len(scores) for prompt, scores in by_prompt.items()}
        for policy, by_prompt in answers.items()
    }


def _options(directory: Path, manifest: Manifest, block: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a stage as it ran: of its key, since the recipe may have been changed; else of the recipe."""
    file = directory / KEY_FILE
    if not file.is_file():
        return block
    content = read_json(file)
    if not isinstance(content, dict) or sha256_json(content) != manifest.key:
        raise IntegrityError(f"{file} is not what the key in the manifest beside it was made of")
    spec = content.get("spec")
    return spec if isinstance(spec, Mapping) else {}


def _reward(options: Mapping[str, Any], manifest: Manifest) -> _Reward:
    scorer = options.get("reward")
    named = dict.fromkeys(name for _, name in scorers_of(scorer))
    made = [manifest.inputs[name].get("sha256", "") for name in named if name in manifest.inputs]
    return _Reward(_described(scorer), " ".join(made))


def _described(scorer: object) -> str:
    """A reward as a person would name it; in a key files are the hash of what is in them."""
    if not isinstance(scorer, Mapping):
        return f"'{scorer}'"
    if scorer.get("weighted"):
        parts = [(part.get("weight", 1.0) if isinstance(part, Mapping) else 1.0, part) for part in scorer["weighted"]]
        return " + ".join(f"{weight:g} × {_described(part)}" for weight, part in parts)
    if scorer.get("url") is not None:
        return f"the server {scorer['url']}"
    if scorer.get("function") is not None:
        content = str(scorer.get("function_content", ""))[:KEY_DIGITS]
        return f"the function {scorer['function']}{content and f' ({content})'}"
    for source, what in (("lexicon", "the word list"), ("pretrained", "the model")):
        if scorer.get(source) is not None:
            return f"{what} {_content(str(scorer[source]))}{_revision(scorer)}"
    return f"'{scorer.get('model')}'"


def _content(written: str) -> str:
    """The first digits of a hash, the last part of a path, and the id of a model on the Hub as it is."""
    if len(written) == 64 and not set(written) - set("0123456789abcdef"):
        return written[:KEY_DIGITS]
    return Path(written).name if Path(written).is_absolute() else written


def _revision(scorer: Mapping[str, Any]) -> str:
    return f" at {scorer['revision']}" if scorer.get("revision") else ""
