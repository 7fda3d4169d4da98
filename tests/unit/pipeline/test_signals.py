"""Real processes that are stopped, killed, and started twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

from experiment import Experiment, alive, states, wait_for

from prefopt.pipeline import loading
from prefopt.pipeline.stages import Registry


def hanging_pid(experiment: Experiment) -> int:
    wait_for(lambda: experiment.count("sft hangs"))
    return int(next(line for line in experiment.lines() if line.startswith("sft hangs")).split()[-1])


def result(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def test_kill_of_the_runner_ends_the_worker_and_the_next_run_resumes(experiment: Experiment) -> None:
    experiment.behave({"sft": {"when": 4, "what": "hang"}})
    process = experiment.start()
    worker = hanging_pid(experiment)
    assert experiment.status().holder.startswith(f"process {process.pid} on ")
    assert [stage.state for stage in experiment.status().stages[:2]] == ["done", "running"]
    process.kill()
    result(process)
    killed = time.monotonic()
    wait_for(lambda: not alive(worker), 3.0)
    assert time.monotonic() - killed < 2.0
    experiment.behave({})
    resumed = experiment.run()
    assert states(resumed) == {"base": "skipped", "sft": "done", "other": "done", "dpo": "done"}
    assert experiment.count("sft step") == 6
    assert any(f"process {process.pid}" in message for message in experiment.listener.messages)


def test_a_second_run_is_refused_at_once(experiment: Experiment) -> None:
    experiment.behave({"sft": {"when": 2, "what": "hang"}})
    first = experiment.start()
    hanging_pid(experiment)
    second = experiment.start()
    code, output = result(second)
    assert code != 0 and f"process {first.pid} on {os.uname().nodename}, started 20" in output
    assert "EnvironmentFault" in output
    first.kill()
    result(first)


def test_a_stop_saves_and_names_the_command_that_goes_on(experiment: Experiment) -> None:
    experiment.behave({"sft": {"sleep": 0.1}})
    process = experiment.start()
    wait_for(lambda: experiment.count("sft step 2"))
    process.send_signal(signal.SIGTERM)
    code, output = result(process)
    assert code == 75
    summary = json.loads(output.splitlines()[0])
    assert [stage["state"] for stage in summary["stages"]] == ["done", "interrupted", "interrupted", "blocked"]
    assert f"prefopt run {experiment.recipe} --out {experiment.out}" in summary["stages"][1]["error"]
    assert "Ctrl-C again aborts" in output
    assert experiment.status().stages[1].state == "interrupted"
    experiment.behave({})
    experiment.run()
    assert experiment.count("sft step") == 6


def test_the_second_interrupt_aborts_at_once_with_everything_the_stage_started(experiment: Experiment) -> None:
    experiment.behave({"sft": {"when": 2, "what": "hang"}})
    process = experiment.start()
    worker = hanging_pid(experiment)
    process.send_signal(signal.SIGINT)
    # The runner has heard it when the worker has: the fake stage's sleep goes on after the signal.
    time.sleep(0.4)
    assert alive(worker)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, output = result(process)
    assert time.monotonic() - start < 3.0
    assert code == 75 and "aborted" in output
    assert not alive(worker)


def test_a_stop_for_the_whole_group_still_saves(experiment: Experiment) -> None:
    # A service manager signals every process: the fork server must not die of it before the worker has saved.
    experiment.behave({"sft": {"sleep": 0.1}})
    process = experiment.start()
    wait_for(lambda: experiment.count("sft step 2"))
    os.killpg(process.pid, signal.SIGTERM)
    code, output = result(process)
    assert code == 75 and "a checkpoint was saved" in output


def test_a_stage_that_ends_before_it_hears_the_stop_is_kept(experiment: Experiment) -> None:
    experiment.behave({"base": {"sleep": 0.1, "deaf": True}})
    process = experiment.start()
    wait_for(lambda: experiment.count("base step 2"))
    process.send_signal(signal.SIGTERM)
    code, output = result(process)
    assert code == 75
    assert [stage["state"] for stage in json.loads(output.splitlines()[0])["stages"]][:2] == ["done", "interrupted"]


def test_children_of_a_killed_stage_are_ended_with_it(experiment: Experiment) -> None:
    experiment.behave({"base": {"when": 2, "what": "orphan"}})
    assert states(experiment.run(only=("base",)))["base"] == "failed"
    orphan = int(next(line for line in experiment.lines() if "orphan" in line).split()[-1])
    wait_for(lambda: not alive(orphan), 3.0)


def test_children_of_a_stage_can_be_ended_by_signals(experiment: Experiment) -> None:
    # A pool ends its workers with SIGTERM; the stage's own handler, which only takes note, must not be theirs.
    experiment.behave({"base": {"when": 2, "what": "pool"}})
    assert states(experiment.run(only=("base",)))["base"] == "done"
    assert f"base child ended by {signal.SIGTERM.value}" in experiment.lines()


def test_what_could_not_be_preloaded_is_told(experiment: Experiment) -> None:
    # A server of its own, as a program that has one keeps it.
    script = (
        "from prefopt.pipeline import loading; loading.load('no_such_module'); loading.load('fake_stage');"
        "print(loading.warnings())"
    )
    environment = {**os.environ, **experiment.environment()}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "no_such_module could not be imported ahead of time: ModuleNotFoundError" in done.stdout
    assert "fake_stage" not in done.stdout


def test_threads_that_wait_soon_sleep_unless_the_user_says_otherwise() -> None:
    unset: dict[str, str] = {}
    loading.fix_environment(unset)
    assert unset["OMP_WAIT_POLICY"] == "PASSIVE" and int(unset["GOMP_SPINCOUNT"]) > 0
    assert unset["HF_HUB_DISABLE_TELEMETRY"] == "1"
    chosen = {"OMP_WAIT_POLICY": "ACTIVE"}
    loading.fix_environment(chosen)
    assert chosen["OMP_WAIT_POLICY"] == "ACTIVE" and "GOMP_SPINCOUNT" not in chosen
    chosen = {"GOMP_SPINCOUNT": "7"}
    loading.fix_environment(chosen)
    assert chosen["GOMP_SPINCOUNT"] == "7"


def test_registry_knows_kinds_without_importing_them() -> None:
    registry = Registry()
    assert registry.module("dpo") == "prefopt.pipeline.stages.dpo"
    assert registry.revision("dpo") >= 1
