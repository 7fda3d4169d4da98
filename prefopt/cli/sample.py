"""`prefopt sample STAGE_DIR`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefopt.errors import InputError, PrefoptError

if TYPE_CHECKING:
    from prefopt.data.prompts import NamedPrompt
    from prefopt.pipeline.artefact import ModelArtefact
    from prefopt.pipeline.sampling import OpenPolicy
    from prefopt.records import Completion

_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class _Settings:
    """How to sample, as the document of `--json` has it."""

    n: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int


_Directory = Annotated[
    Path, typer.Argument(help="runs/NAME/stages/STAGE, its KEY12 folder, or runs/NAME.", metavar="STAGE_DIR")
]
_Stage = Annotated[str | None, typer.Option("--stage", metavar="NAME", help="The stage, where STAGE_DIR is runs/NAME.")]
_Texts = Annotated[
    list[str] | None, typer.Option("--prompt", metavar="TEXT", help="A prompt; may be given several times.")
]
_FILE_HELP = 'Prompts: .txt, one a line, or .jsonl with {"prompt": text or messages}, as in samples.jsonl.'
_TRUST_HELP = "Run code of the model's repository, where the recipe agrees."
_SEED_HELP = "Same seed, same text; the recipe's by default."


def command(
    directory: _Directory,
    stage: _Stage = None,
    prompt: _Texts = None,
    file: Annotated[Path | None, typer.Option("--file", metavar="FILE", help=_FILE_HELP)] = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="A system turn before every prompt.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, metavar="N", help="Completions of each prompt.")] = 1,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", help="Divides the logits; 0 is greedy.")
    ] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", metavar="P", help="Share of probability to sample from.")] = 1.0,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, metavar="N", help="A longer completion is cut.")
    ] = 64,
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=_LARGEST_SEED, metavar="S", help=_SEED_HELP)] = None,
    gold: Annotated[
        bool, typer.Option("--gold", help="Gold reward and violations beside it; embedded world only.")
    ] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=_TRUST_HELP)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Let a trained stage answer prompts: given, from a file, piped in a line each, or typed."""
    from prefopt.cli.output import print_json
    from prefopt.pipeline.artefact import find_artefact

    _check_numbers(temperature, top_p)
    asked = _given(prompt or (), file, system)
    talks = not asked and _at_terminal()
    if talks and as_json:
        raise InputError("--json needs prompts", "add --prompt TEXT or --file FILE, or pipe them in")
    artefact = find_artefact(directory, stage)
    if gold and not artefact.has_gold:
        raise InputError(f"--gold: the data of {artefact.recipe.name} is not of the embedded world")
    if not asked and not talks:
        asked = _piped(system)
    settings = _Settings(n, temperature, top_p, max_new_tokens, artefact.recipe.seed if seed is None else seed)
    policy = _open(artefact, trust_remote_code)
    if talks:
        _talk(policy, settings, system, gold)
        return
    rows = _answer(policy, asked, settings, gold)
    if as_json:
        print_json(_document(artefact, policy, settings, rows))
    else:
        _show(asked, rows, settings.n)


# ---- what is asked ---------------------------------------------------------------------------------------------------


def _check_numbers(temperature: float, top_p: float) -> None:
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InputError(f"--temperature must be 0 or more, not {temperature:g}")
    if not 0 < top_p <= 1:
        raise InputError(f"--top-p must be above 0 and at most 1, not {top_p:g}")


def _given(texts: Sequence[str], file: Path | None, system: str | None) -> list[NamedPrompt]:
    from prefopt.data.formats import is_blank
    from prefopt.data.prompts import file_prompts, text_prompt

    if system is not None and is_blank(system):
        raise InputError("--system is empty", "leave it out")
    asked = [text_prompt(text, f"--prompt {text!r:.40}", system) for text in texts]
    return asked if file is None else [*asked, *file_prompts(file, system)]


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _piped(system: str | None) -> list[NamedPrompt]:
    from prefopt.data.prompts import lines_prompts

    asked = lines_prompts(sys.stdin.buffer.read(), "stdin", system) if sys.stdin is not None else []
    if not asked:
        raise InputError("no prompts: stdin is empty", "add --prompt TEXT or --file FILE, or pipe one prompt a line")
    return asked


# ---- what is answered ------------------------------------------------------------------------------------------------


def _open(artefact: ModelArtefact, trust_remote_code: bool) -> OpenPolicy:
    import os
    import warnings

    from prefopt.cli.output import note
    from prefopt.pipeline.loading import fix_environment

    fix_environment(os.environ)  # before torch is imported
    # What libraries say to each other about their next versions is nothing to the person who asks.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    from prefopt.pipeline.sampling import open_policy

    trained = artefact.trained
    note(f"loading {trained.stage} ({trained.kind}, {trained.directory.name}) of {artefact.run.root}")
    return open_policy(artefact, trust_remote_code=trust_remote_code, log=note)


def _answer(policy: OpenPolicy, asked: Sequence[NamedPrompt], settings: _Settings, gold: bool) -> list[dict[str, Any]]:
    """Rows as in `samples.jsonl`; the gold terms and their sum where they are asked for."""
    from prefopt.models.generate import SamplingOptions

    options = SamplingOptions(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
    )
    if gold:
        _note_without_facts(asked)
    return [_row(completion, gold) for completion in policy.answer(asked, settings.n, options)]


def _row(completion: Completion, gold: bool) -> dict[str, Any]:
    from prefopt.data.toy import world
    from prefopt.rewards.scorers import GoldScorer

    row: dict[str, Any] = {
        "policy": completion.policy,
        "prompt": [asdict(message) for message in completion.prompt],
        "completion": completion.text,
        "finished": completion.finished,
        "tokens": completion.tokens,
    }
    if gold:
        scorer = GoldScorer()
        row["gold"] = scorer.score([completion.prompt], [completion.text])[0].value
        row["gold_terms"] = world.gold_terms(completion.prompt, completion.text)
        row["violations"] = scorer.violations([completion.text])[0]
    return row


def _note_without_facts(asked: Sequence[NamedPrompt]) -> None:
    from prefopt.cli.output import note
    from prefopt.data.toy.reading import read_prompt

    bare = sum(not read_prompt(named.prompt).facts for named in asked)
    if bare:
        note(
            f"{bare} of {len(asked)} prompts hold no facts of the embedded world: whatever is stated counts as made up"
        )


# ---- what is shown ---------------------------------------------------------------------------------------------------


def _document(
    artefact: ModelArtefact, policy: OpenPolicy, settings: _Settings, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "run": str(artefact.run.root),
        "stage": artefact.trained.stage,
        "kind": artefact.trained.kind,
        "key": artefact.trained.manifest.key,
        "base": policy.base.location.name,
        "settings": asdict(settings),
        "samples": rows,
    }


def _show(asked: Sequence[NamedPrompt], rows: Sequence[dict[str, Any]], n: int) -> None:
    from prefopt.cli.output import BOLD, harmless, say, styled

    for index, named in enumerate(asked):
        if index:
            say()
        for message in named.prompt:
            say(f"{styled(message.role + ':', BOLD, sys.stdout)} {harmless(message.content)}")
        _show_answers(rows[index * n : (index + 1) * n])


def _show_answers(rows: Sequence[dict[str, Any]]) -> None:
    from prefopt.cli.output import BOLD, DIM, harmless, say, styled

    for number, row in enumerate(rows, start=1):
        who = row["policy"] if len(rows) == 1 else f"{row['policy']} {number}/{len(rows)}"
        say(f"{styled(who + ':', BOLD, sys.stdout)} {harmless(row['completion'])}")
        say(styled(f"  [{_account(row)}]", DIM, sys.stdout))


def _account(row: dict[str, Any]) -> str:
    count = row["tokens"]
    parts = [f"{count} token{'s' if count != 1 else ''}", "ended itself" if row["finished"] else "cut, did not end"]
    if "gold" in row:
        terms = [f"{name} {value:+.2f}" for name, value in row["gold_terms"].items() if round(value, 2)]
        parts.append(f"gold {row['gold']:.2f}" + (f" = {', '.join(terms)}" if terms else ""))
        if row["violations"]:
            parts.append(f"told {', '.join(row['violations'])}")
    return " · ".join(parts)


def _talk(policy: OpenPolicy, settings: _Settings, system: str | None, gold: bool) -> None:
    """Answers what is typed until Ctrl-D; the prompts are not one conversation.

    The seed grows with every prompt, so that asking again gives another answer and a whole session can be repeated.
    """
    from prefopt.cli.output import note, print_error
    from prefopt.data.formats import is_blank
    from prefopt.data.prompts import text_prompt

    try:
        import readline  # noqa: F401 - input() edits lines and remembers them once it is imported
    except ImportError:
        note("this Python has no readline: lines cannot be edited")
    note("a prompt a line, each on its own; Ctrl-C drops it, Ctrl-D ends")
    while True:
        try:
            text = input("> ")
            if is_blank(text):
                continue
            asked = [text_prompt(text, "the prompt", system)]
            rows = _answer(policy, asked, settings, gold)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        except PrefoptError as error:
            print_error(error)
            continue
        _show_answers(rows)
        settings = replace(settings, seed=(settings.seed + 1) % (_LARGEST_SEED + 1))
