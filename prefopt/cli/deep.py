"""How `prefopt check --deep` shows what it found, on stdout."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.cli.output import BOLD, harmless, print_table, say, styled
from prefopt.pipeline.deep_check import Finding
from prefopt.pipeline.estimate import Estimate, size_text

_BETWEEN = "│"


def show(findings: Sequence[Finding]) -> None:
    """One block for every stage."""
    for finding in findings:
        if finding.report is not None:
            say()
            _show(finding, finding.report)


def _show(finding: Finding, report: Mapping[str, Any]) -> None:
    memory = report["memory"]
    measured = "not measured" if memory["measured"] is None else f"{size_text(memory['measured'])} measured"
    title = f"{finding.stage}: {size_text(memory['estimate'])} estimated, {measured} ({memory['device']})"
    print_table(("memory", "bytes", "rows", "a row"), _memory_rows(memory), title=title)
    for line in report["stand_ins"]:
        say(f"note: {line}")
    say("tokens of the first row, of at most " + f"{report['rows']['longest']}:")
    parts = sorted(report["tokens"].items(), key=lambda part: part[0] != "prompt")
    for part, tokens in parts:
        text = _BETWEEN.join(text for _, text in tokens)
        say(f"  {part} ({len(tokens)}): {harmless(text)}")
    for line in _proof_lines(report["proofs"]):
        say(line)
    for line in report["problems"]:
        say(styled(f"wrong: {harmless(line)}", BOLD, sys.stdout))
    if finding.fit is not None:
        _show_fit(finding)


def _memory_rows(memory: Mapping[str, Any]) -> list[tuple[object, ...]]:
    estimate = Estimate.from_json(memory)
    before = "on the device before" if memory["device"] == "cuda" else "libraries and rows"
    rows: list[tuple[object, ...]] = [
        (before, size_text(estimate.before_model), None, None),
        ("weights", size_text(estimate.weights), None, None),
        ("Adam's averages", size_text(estimate.optimizer), None, None),
    ]
    if estimate.passes > 1:
        rows.append(("gradients of earlier passes", size_text(estimate.trained), None, None))
    for phase in estimate.phases:
        rows.append((phase.name, size_text(phase.bytes), phase.rows, size_text(phase.per_row)))
    return rows


def _proof_lines(proofs: Mapping[str, Any] | None) -> list[str]:
    if proofs is None:
        return ["no step was made: by the estimate it does not fit"]
    lines = [
        f"first step: loss {proofs['loss']:.4g}; {proofs['trained']} weights are trained, {proofs['frozen']} frozen"
    ]
    if proofs["shared_minus_padded"] is not None:
        lines.append(f"pairs that share their prompts differ by {proofs['shared_minus_padded']:.1e} from padded rows")
    if proofs["policy_minus_reference"] is not None:
        lines.append(f"policy and reference differ by {proofs['policy_minus_reference']:.1e} before it")
    return lines


def _show_fit(finding: Finding) -> None:
    assert finding.fit is not None
    verified = "" if finding.fit.verified is None else f" ({size_text(finding.fit.verified)} measured)"
    if not finding.fit.settings:
        say(f"fits as it is{verified}")
        return
    settings = " ".join(f"--set stages.{finding.stage}.{key}={value}" for key, value in finding.fit.settings.items())
    say(f"fits{verified} with: {settings}")
