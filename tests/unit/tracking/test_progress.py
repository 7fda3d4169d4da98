import io

import pytest
from rich.console import Console

from prefopt.tracking.progress import Display, duration, shown_metrics


def console(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None, _environ={})


def test_plain_lines_are_throttled_per_stage():
    now = [0.0]
    out = console()
    display = Display(out, every_seconds=10.0, clock=lambda: now[0])
    with display:
        display.stage_started("sft", "sft", 1, 2)
        display.stage_started("policy", "dpo", 2, 2)
        for step in range(1, 31):
            now[0] = float(step)
            display.progress("sft", step, 30, {"train/loss": 0.5})
        display.progress("policy", 3, 0, {})
        display.stage_finished("sft", "done", 30.2, "eval loss 0.4")
    lines = out.file.getvalue().splitlines()
    assert lines == [
        "[1/2] sft  started",
        "[2/2] policy (dpo)  started",
        "[1/2] sft  step 10/30 (33 %)  loss 0.5",
        "[1/2] sft  step 20/30 (66 %)  loss 0.5",
        "[1/2] sft  step 30/30 (100 %)  loss 0.5",
        "[2/2] policy (dpo)  step 3/?",
        "✓ [1/2] sft  done in 30 s  eval loss 0.4",
    ]


def test_a_terminal_gets_bars_with_the_latest_numbers():
    out = console(terminal=True)
    with Display(out) as display:
        display.stage_started("dpo", "dpo", 1, 1)
        display.progress("dpo", 5, 10, {"train/loss": 0.25})
        display.progress("dpo", 6, 10, {})
        display._bars.refresh()
        display.message("[bold]kept as written")
        display.stage_finished("dpo", "failed", 1.0, "loss is NaN")
    text = out.file.getvalue()
    assert "6/10" in text and "loss 0.25" in text and "━" in text
    assert "[bold]kept as written" in text
    assert "✗ [1/1] dpo  failed in 1.0 s  loss is NaN" in text


def test_quiet_shows_messages_only():
    out = console(terminal=True)
    with Display(out, quiet=True) as display:
        display.stage_started("dpo", "dpo", 1, 1)
        display.progress("dpo", 5, 10, {"train/loss": 0.25})
        display.message("wandb: no API key")
        display.stage_finished("dpo", "done", 1.0)
    assert out.file.getvalue() == "wandb: no API key\n"


def test_the_default_leaves_standard_output_alone(capsys):
    with Display() as display:
        display.stage_started("dpo", "dpo", 1, 1)
        display.message("hello")
    captured = capsys.readouterr()
    assert captured.out == "" and "hello" in captured.err


def test_an_unknown_stage_does_no_harm():
    out = console()
    Display(out).progress("late", 1, 2, {})
    Display(out).stage_finished("late", "interrupted", 1.0)
    assert "! late  interrupted" in out.file.getvalue()


def test_the_most_telling_metrics_come_first():
    metrics = {"dpo/margin": 1.0, "dpo/accuracy": 0.75, "train/loss": 0.5, "train/epoch": 1.0, "eval/loss": 2.0}
    assert shown_metrics(metrics) == "loss 0.5  eval loss 2  accuracy 0.75"
    assert shown_metrics({"eval/dpo/accuracy": 0.5}) == "eval accuracy 0.5"
    assert shown_metrics({"dpo:kl/mean": 3.0, "dpo:win_rate/mean": 0.7, "sft:length/mean": 9.0}) == "dpo win rate 0.7"
    assert shown_metrics({"sft:length/mean": 9.0}) == "sft length 9"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
