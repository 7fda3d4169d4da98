import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest

from prefopt.errors import InputError
from prefopt.report import render
from tests.run_folder import HOSTILE, RECIPE, RunFolder

VOID = {"meta", "link", "img", "br", "hr", "path", "use", "rect", "input"}


class Page(HTMLParser):
    """Checks that elements nest, and collects them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.ids, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = RunFolder(tmp_path_factory.mktemp("whole") / "toy").everything()
    return root, render(root).read_text(encoding="utf-8")


def test_the_page_has_every_part(whole):
    root, text = whole
    page = Page(text)
    for part in (
        "verdict",
        "evaluation",
        "stages",
        "stage-dpo",
        "samples",
        "data",
        "recipe",
        "environment",
        "glossary",
    ):
        assert part in page.ids, part
    assert "dpo beats sft: win rate 0.70 [0.65, 0.75]" in page.text
    assert "12 of 60 prompts, evenly spaced from the largest loss to the largest gain of dpo over sft" in page.text
    assert "dropped › chosen equals rejected" in page.text and "2\u2009000" in page.text
    assert "wall time" in page.text and "1 min 13 s" in page.text
    assert "kind: dpo, init: sft" in page.text and "packages › torch" in page.text
    assert len([tag for tag, _ in page.elements if tag == "svg"]) == 7
    assert len(list((root / "report" / "plots").glob("*.png"))) == 7
    assert "Share of prompts where this policy's answer beats the baseline's" in page.text
    assert 'id="warnings"' not in text


def test_the_page_is_self_contained(whole):
    text = whole[1]
    page = Page(text)
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "img", "form", "base", "image", "foreignobject"}
    for _, attrs in page.elements:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("href", "src", "xlink:href"):
            assert re.match(r"#|data:,$", attrs.get(name) or "#")
    assert re.findall(r"url\((?!#)", text) == [] and "@import" not in text and "<metadata>" not in text
    assert all(address.startswith("http://www.w3.org/") for address in re.findall(r"https?://[^\"\s<]+", text))


def test_ids_are_unique_and_references_resolve(whole):
    page = Page(whole[1])
    assert len(page.ids) == len(set(page.ids))
    references = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', whole[1])
    assert references and {a or b for a, b in references} <= set(page.ids)


def test_drawings_take_the_colours_of_the_page(whole):
    drawings = "".join(re.findall(r"<svg.*?</svg>", whole[1], re.DOTALL))
    assert "var(--ink)" in drawings and "var(--series-1)" in drawings
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawings)) <= {"#ffffff"}
    assert "<title>dpo: Reward margin</title>" in drawings


def test_the_same_folder_gives_the_same_bytes_without_heavy_imports(whole):
    root, text = whole
    before = {path.name: path.read_bytes() for path in (root / "report" / "plots").iterdir()}
    program = (
        "import sys, pathlib; from prefopt.report import render; assert 'matplotlib' not in sys.modules;"
        "render(pathlib.Path(sys.argv[1]));"
        "assert not {'torch', 'transformers', 'wandb', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(root)], check=True)
    assert (root / "report" / "index.html").read_text(encoding="utf-8") == text
    assert {path.name: path.read_bytes() for path in (root / "report" / "plots").iterdir()} == before


def test_hostile_text_is_shown_verbatim_and_stays_text(tmp_path):
    recipe = RECIPE.replace("description: The", f"description: {json.dumps(HOSTILE[0])} #").replace(
        "name: toy\n", "name: toy\n", 1
    )
    root = RunFolder(tmp_path / "run", recipe=recipe, hostile=True).everything(prompts=len(HOSTILE))
    text = render(root).read_text(encoding="utf-8")
    page = Page(text)
    tags = [tag for tag, _ in page.elements]
    assert "script" not in tags and "img" not in tags
    assert tags.count("svg") == 7
    for said in HOSTILE[:-1]:
        assert said in page.text
    assert "null \ufffd bell \ufffd lone \ufffd" in page.text
    # A product that no time or number of the page has by chance.
    assert "{{ 7919 * 7907 }}" in page.text and str(7919 * 7907) not in page.text
    assert '<bdi class="control" title="U+202E"' in text
    assert page.text.count(HOSTILE[0]) > 4  # description, warning, violation and samples
    assert "not valid YAML" not in page.text


def test_secrets_of_the_environment_are_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    folder = RunFolder(tmp_path / "run", recipe=RECIPE + "# hf_abcdefghijklmnop https://me:hunter22@host/x\n")
    folder.train("base", details={"warnings": ["refused: hf_abcdefghijklmnop"]})
    folder.run.fingerprint.write_text('{"argv": ["--token", "hf_abcdefghijklmnop"]}')
    text = render(folder.run.root).read_text(encoding="utf-8")
    assert "hf_abcdef" not in text and "hunter22" not in text and text.count("[redacted]") == 4


def test_a_run_that_only_just_began(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.metrics("base", steps=20)
    text = render(folder.run.root).read_text(encoding="utf-8")
    page = Page(text)
    assert "Not evaluated yet: 0 of 4 stages are done" in page.text
    assert page.text.count("not started") == 3 and page.text.count("unfinished") == 1
    assert "evaluation" not in page.ids and "samples" not in page.ids
    assert "base-loss.png" in {path.name for path in (folder.run.root / "report" / "plots").iterdir()}


def test_plots_of_an_earlier_report_do_not_stay(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.metrics("base")
    render(folder.run.root)
    (folder.folder("base") / "metrics.jsonl").unlink()
    render(folder.run.root)
    assert list((folder.run.root / "report" / "plots").iterdir()) == []


def test_damage_becomes_a_warning(tmp_path):
    folder = RunFolder(tmp_path / "run")
    root = folder.everything()
    (folder.folder("base") / "manifest.json").write_text("{")
    metrics = folder.folder("sft") / "metrics.jsonl"
    metrics.write_text("torn\n" + metrics.read_text())
    with (folder.folder("eval") / "samples.jsonl").open("a") as file:
        file.write('{"policy": "d')
    folder.run.fingerprint.write_text("{")
    page = Page(render(root).read_text(encoding="utf-8"))
    assert "metrics.jsonl:1: not a JSON object" in page.text
    assert "samples.jsonl: last line is torn" in page.text
    assert "the environment is unknown" in page.text
    assert "dpo beats sft" in page.text and page.text.count("unfinished") == 1


def test_values_that_are_not_finite_are_warned_about(tmp_path):
    folder = RunFolder(tmp_path / "run")
    rows = [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": None, "nonfinite": ["train/loss"]}]
    rows += [{"step": 3, "train/loss": 1.0}, {"step": 4, "train/loss": None, "nonfinite": ["train/loss"]}]
    (folder.folder("base") / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(render(folder.run.root).read_text(encoding="utf-8"))
    assert "train/loss was not a finite number at step 2 and 1 later steps" in page.text


@pytest.mark.parametrize(
    "recipe", ["", "[1, 2]", "stages: [a]", "stages: {a: 3, b: {kind: [x]}}", "name: {a: 1}", "a: {", "\x00"]
)
def test_any_recipe_renders(tmp_path, recipe):
    root = RunFolder(tmp_path / "run", recipe=recipe).run.root
    assert "Recipe" in Page(render(root).read_text(encoding="utf-8")).text


def test_an_evaluation_without_numbers_or_reward(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.evaluate(measured=False)
    samples = folder.folder("eval") / "samples.jsonl"
    rows = [{**json.loads(line), "gold": None} for line in samples.read_text().splitlines()]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(render(folder.run.root).read_text(encoding="utf-8"))
    assert "12 of 60 prompts, evenly spaced in the order they were asked" in page.text


@pytest.mark.slow
def test_a_long_training_renders_quickly(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with (folder.folder("dpo") / "metrics.jsonl").open("w") as file:
        for step in range(1, 100_001):
            file.write(f'{{"step": {step}, "time": 1.0, "train/loss": {1 / step}, "dpo/margin": {step % 7}}}\n')
    start = time.monotonic()
    path = render(folder.run.root)
    assert time.monotonic() - start < 5
    assert path.stat().st_size < 300_000


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not the folder of a run"):
        render(tmp_path)
    assert list(tmp_path.iterdir()) == []
