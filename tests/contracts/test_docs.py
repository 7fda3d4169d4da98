"""What the documentation says of files, commands, options, formats and code is so."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from pydantic import BaseModel

from prefopt.cli.app import VERBS, build_app
from prefopt.data import formats
from prefopt.data.sources import SourceRow
from prefopt.recipe.layout import specs_in, stage_specs
from prefopt.recipe.load import load
from prefopt.recipe.options.costs import AnyCost, CostSpec
from prefopt.recipe.options.penalties import PenaltySpec
from prefopt.recipe.schema import (
    AdapterSpec,
    DataSpec,
    LoraSpec,
    ModelSpec,
    OptimisationSpec,
    PriceSpec,
    Recipe,
    RoundsSpec,
    StageSpec,
    TrainingSpec,
    WandbSpec,
)
from prefopt.recipe.scorers import ScorerSpec
from prefopt.tracking.metrics import describe
from tests.tiny import tiny_llama, tiny_tokenizer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
ROW = re.compile(r"^\| *`([^`]+)`[ *]*\| *(.*?) *\|", re.MULTILINE)
SECTIONS = {"The recipe": Recipe, "model": ModelSpec, "model.lora": LoraSpec, "data.NAME": DataSpec,
            "tracking.wandb": WandbSpec, "price": PriceSpec, "rounds": RoundsSpec,
            "reward, proxy and judge": ScorerSpec}  # fmt: skip
COMMON = {"Every stage": StageSpec, "Every training stage": OptimisationSpec, "Training on rows": TrainingSpec,
          "Stages with an adapter": AdapterSpec}  # fmt: skip


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(text) if language in languages]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name):
    page = ROOT / name
    dead = []
    for target in LINK.findall(FENCE.sub("", text_of(name))):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        known = anchors(file.read_text(encoding="utf-8")) if anchor and file.suffix == ".md" else {anchor}
        if not file.is_relative_to(ROOT) or not file.exists() or anchor not in known:
            dead.append(target)
    assert dead == []


def commands(text: str) -> list[list[str]]:
    """Command lines of prefopt in shell blocks and in the text, as words after the program."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    words = [shlex.split(line, comments=True) for line in lines if re.match(r"(?:[A-Z_]+=\S* |time )*prefopt ", line)]
    return [line[line.index("prefopt") + 1 :] for line in words]


def options_of(verb: str | None) -> set[str]:
    group: Any = typer.main.get_command(build_app(verb))
    command = group.commands[verb] if verb else group
    return {"--help", "--debug", *(name for parameter in command.params for name in parameter.opts)}


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_their_flags_exist(name):
    wrong = []
    for words in commands(text_of(name)):
        verb = None if words[0].startswith("-") else words[0]
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        if (verb is not None and verb not in VERBS) or flags - options_of(verb):
            wrong.append(" ".join(words))
        recipes = [word for word in words if word.startswith("recipes/")]
        wrong += [recipe for recipe in recipes if not (ROOT / recipe).is_file()]
    assert wrong == []


@pytest.mark.parametrize("name", NAMES)
def test_make_targets_and_scripts_exist(name):
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    text = text_of(name)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    scripts = re.findall(r"python (tests/\S+\.py)", text)
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def test_tests_that_pages_name_exist():
    suite = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = {name for page in NAMES for name in re.findall(r"`(test_\w+)`", text_of(page))}
    assert named and {name for name in named if f"def {name}(" not in suite} == set()


def test_the_readme_names_the_two_commands():
    lines = "\n".join(blocks(text_of("README.md"), "bash")).splitlines()
    assert {"make quickstart", "make test"} <= set(lines)


def recipes_in(name: str) -> list[str]:
    return [block for block in blocks(text_of(name), "yaml") if re.match(r"name:", block)]


@pytest.mark.parametrize("name", [name for name in NAMES if recipes_in(name)])
def test_recipes_in_pages_load_without_a_warning(name, tmp_path):
    for number, text in enumerate(recipes_in(name)):
        for spec in yaml.safe_load(text)["data"].values():
            if Path(spec["path"]).suffix:
                (tmp_path / spec["path"]).touch()
        path = tmp_path / f"{number}.yaml"
        path.write_text(text, encoding="utf-8")
        assert load(path).warnings == ()


def test_quoted_lines_of_a_recipe_are_in_it_in_that_order():
    """A block that starts with the name of a recipe quotes it, leaving lines out."""
    quotes = [block for block in blocks(text_of("README.md"), "yaml") if block.startswith("# recipes/")]
    assert quotes
    for quote in quotes:
        first, *lines = quote.splitlines()
        rest = iter(text_of(first.removeprefix("# ")).splitlines())
        assert [line for line in lines if line not in rest] == []


def tables(text: str) -> dict[str, dict[str, str]]:
    """Key → default of the option tables of a page, by heading."""
    found = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        _, header, table = body.partition("| key | default |")
        if header:
            found[heading] = dict(ROW.findall(table))
    return found


def said(default: object) -> str:
    """A default as the tables write it."""
    if isinstance(default, BaseModel):
        return "none" if not default.model_dump(exclude_none=True) else "see below"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple) and default:
        return ", ".join(map(str, default))
    return {"None": "none", "()": "`[]`", "": "empty"}.get(str(default), str(default))


def defaults(spec: type[BaseModel]) -> dict[str, str]:
    found = {}
    for key, field in spec.model_fields.items():
        factory = "`{}`" if field.default_factory else said(field.default)
        found[key] = "required" if field.is_required() else factory
    return found


def options(spec: type[BaseModel]) -> dict[str, str]:
    """As `defaults`, with the keys of mappings as `kl.coefficient`; those of every scorer have their own section."""
    found = defaults(spec)
    for key, field in spec.model_fields.items():
        for inner in specs_in(field.annotation):
            if isinstance(field.default, BaseModel):
                del found[key]
            if issubclass(inner, CostSpec):
                continue  # they have a page of their own
            below = defaults(inner).items()
            found |= {f"{key}.{name}": value for name, value in below if name not in ScorerSpec.model_fields}
    return found


def same(written: str, default: str) -> bool:
    try:
        return float(written) == float(default)
    except ValueError:
        return written == default


def check_options(written: dict[str, str], known: dict[str, str]) -> None:
    expected = {key: value for key, value in known.items() if key != "kind"}
    assert set(written) == set(expected)
    assert {key: value for key, value in written.items() if not same(value, expected[key])} == {}


def test_the_page_of_options_has_every_key_with_its_default():
    found = tables(text_of("docs/options.md"))
    for heading, spec in SECTIONS.items():
        check_options(found[heading], defaults(spec))


@pytest.mark.parametrize("kind", list(stage_specs()))
def test_the_page_of_an_algorithm_has_every_option_with_its_default(kind):
    spec = stage_specs()[kind]
    sections = tables(text_of("docs/options.md"))
    common = [sections[heading] for heading, base in COMMON.items() if issubclass(spec, base)]
    own = tables(text_of(f"docs/algorithms/{kind}.md"))["Options"]
    check_options({key: value for table in (*common, own) for key, value in table.items()}, options(spec))


def test_the_page_of_penalties_has_every_option_with_its_default():
    found = tables(text_of("docs/algorithms/penalties.md"))
    check_options(found["Every cost"], {**defaults(CostSpec), "cost": "required"})
    check_options(found["Price"], defaults(PenaltySpec))
    for spec in get_args(AnyCost):
        (name,) = get_args(spec.model_fields["cost"].annotation)
        own = {key: value for key, value in defaults(spec).items() if key not in CostSpec.model_fields}
        check_options(found.get(name, {}), own)
        assert f"\n## {name}\n" in text_of("docs/algorithms/penalties.md")


@pytest.mark.parametrize("kind", [*stage_specs(), "penalties"])
def test_the_page_of_an_algorithm_explains_metrics_that_exist(kind):
    _, _, table = text_of(f"docs/algorithms/{kind}.md").partition("| metric |")
    names = [row[0] for row in ROW.findall(table)]
    assert names and all(describe(name).meaning for name in names)


def test_example_rows_are_of_the_format_that_the_page_says():
    rows = re.findall(r"^\| `(\w+)` \| .* \| `(\{.*\})` \|$", text_of("docs/concepts.md"), re.MULTILINE)
    assert {name for name, _ in rows} == set(formats.FORMATS) - {"prompt"}
    for name, text in rows:
        row = SourceRow(1, json.loads(text), "row 1")
        assert formats.detect([row], tuple(formats.FORMATS)).name == name
        assert list(formats.convert([row], formats.FORMATS[name], pytest.fail))


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(text_of(name), "python")])
def test_python_in_pages_compiles(name):
    for number, code in enumerate(blocks(text_of(name), "python")):
        assert compile(code, f"{name}, block {number}", "exec")


# What libraries warn of in a user's process is not this test's concern.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_the_trainer_of_the_readme_runs(tmp_path, monkeypatch):
    (code,) = (block for block in blocks(text_of("README.md"), "python") if "DPOTrainer" in block)
    tiny_llama().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    code = code.replace("Qwen/Qwen2.5-0.5B-Instruct", str(tmp_path / "base"))
    exec(compile(code.replace("max_steps=2", "max_steps=2, use_cpu=True"), "README.md", "exec"), {})
    assert (tmp_path / "dpo" / "adapter" / "adapter_model.safetensors").is_file()
