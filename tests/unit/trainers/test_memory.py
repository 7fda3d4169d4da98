"""Counting memory: known sizes, the gradients of the first step, and TRL's tile."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from prefopt.models.host_memory import return_large_blocks
from prefopt.trainers.explorer import CHECKED
from prefopt.trainers.memory import FirstStep, PeakBytes, ProcessPeak, available_bytes, trained_bytes, weight_bytes
from prefopt.trainers.trl import HeadTile
from tests.unit.trainers.four import METHODS, build

CPU = torch.device("cpu")
MEBI = 2**20


def block(count: int = 1) -> torch.Tensor:
    return torch.zeros(count * MEBI // 4)


def test_every_new_tensor_counts_until_it_is_freed():
    before = block()
    peak = PeakBytes(CPU)
    peak.start()
    first = block(2)
    view = first[1:].view(-1)  # no memory of its own
    first += before[0]
    del first
    second = block(3)
    assert peak.peak == 5 * MEBI
    del view, second
    peak.restart()
    third = block(4)
    assert peak.stop() == 4 * MEBI
    after = block(9)
    assert peak.peak == 4 * MEBI
    del third, after


def test_the_backward_pass_counts_as_well():
    weight = block(2).requires_grad_()
    peak = PeakBytes(CPU)
    peak.start()
    (weight.exp()).sum().backward()
    # The exponential, which is kept, what flows back to it, and the gradient; the ones of the sum are a view.
    assert peak.stop() == pytest.approx(4 * MEBI, abs=2 * MEBI + 100)
    assert weight.grad is not None and peak.peak >= 4 * MEBI


def test_shared_weights_count_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    model.requires_grad_(False)
    assert weight_bytes(model) == 64 and trained_bytes(model) == 0
    model[0].weight.requires_grad_(True)
    assert trained_bytes(model) == 64


def counted(method: str, directory, rows: int) -> FirstStep:
    batch = {"per_device_train_batch_size": rows, "max_steps": 1}
    if method == "ppo":
        size = CHECKED * rows  # peaks that do not depend on rows hide those of small rollouts
        batch |= {"rollout_batch_size": size, "total_episodes": size, "per_device_eval_batch_size": size}
        batch |= {"num_mini_batches": 1, "min_new_tokens": 6}
    prompt = [1, *range(6, 40)]
    pair = {"prompt_ids": prompt, "chosen_ids": [7, 8, 2], "rejected_ids": [9, 10, 2]}
    trainer = build(method, directory, rows=[pair] * rows, **batch)
    if method == "ppo":
        trainer.prompts = [{**trainer.prompts[0], "prompt_ids": prompt}]
    first = FirstStep(trainer.model, CPU, count=True)
    trainer.add_callback(first)
    trainer.train()
    return first


@pytest.mark.parametrize("method", METHODS)
def test_the_peak_of_many_rows_follows_from_those_of_one_and_two(tmp_path, method):
    one, two, eight = (counted(method, tmp_path / f"{rows}", rows) for rows in (1, 2, 8))
    assert one.update + 7 * (two.update - one.update) == pytest.approx(eight.update, rel=0.02)
    assert one.untrained == one.leaking == []
    if method == "ppo":
        for phase in ("sampling", "judging"):
            first, second, many = (getattr(found, phase) for found in (one, two, eight))
            assert many > 1e4 and first + 7 * (second - first) == pytest.approx(many, rel=0.05), phase


def test_a_weight_without_gradient_and_a_frozen_one_with_are_found(tmp_path):
    trainer = build("dpo", tmp_path)
    first = FirstStep(trainer.model, CPU, count=False)
    names = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    parameters = dict(trainer.model.named_parameters())
    frozen = next(name for name in parameters if "reference" in name)
    parameters[frozen].grad = torch.ones_like(parameters[frozen])
    parameters[names[0]].register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    parameters[names[1]].register_hook(lambda gradient: gradient * torch.nan)
    parameters[frozen].requires_grad_(False)
    first.on_pre_optimizer_step(None, None, None)
    assert first.leaking == [frozen] and set(first.untrained) == set(names)  # nothing was trained yet
    again = FirstStep(trainer.model, CPU, count=False)
    batch = trainer.data_collator(trainer._with_reference(trainer.train_dataset)[:4])
    trainer.training_step(trainer.model, batch, torch.tensor(4.0))
    again.on_pre_optimizer_step(None, None, None)
    assert again.untrained == names[:2] and again.leaking == [frozen]


def test_the_tile_of_the_head_is_what_trl_allocates(tmp_path):
    rows = {count: counted("sft", tmp_path / f"{count}", count).update for count in (1, 2)}
    tile = HeadTile(300, 4, on_cpu=True)
    tokens = tile.tokens(35, 3)
    one, two = (rows[count] - tile.allocated(count * tokens) for count in (1, 2))
    assert 0 < two - one < 0.2 * tile.allocated(tokens)  # all else is small in a tiny model
    assert 0 < 2 * one - two
    assert tile.allocated(5000) == tile.allocated(4096)
    assert tile.taken(4096) == 4096 * 4096  # a page of every line
    assert HeadTile(300, 2, on_cpu=False).taken() == 4096 * 32768 * 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_of_the_process_begins_anew():
    large = torch.ones(64 * MEBI // 4)
    del large
    peak = ProcessPeak(CPU)
    assert peak.peak() - peak.level < 16 * MEBI
    large = torch.ones(64 * MEBI // 4)
    del large
    assert 60 * MEBI < peak.peak() - peak.level < 90 * MEBI
    assert available_bytes(CPU) > peak.level


HOLDS = """
import sys, torch
from types import SimpleNamespace
from prefopt.models.host_memory import return_large_blocks
from prefopt.trainers import memory
from prefopt.trainers.memory import ProcessPeak
done = return_large_blocks(int(sys.argv[1]))
for training in " ".join(sys.argv[2:]).split("then"):
    keeper = memory.KeepFreedBlocks()
    keeper.on_train_begin(None, None, None)
    for times in map(float, training.split()):  # steps, with so much room for what was resident at most
        memory.available_bytes = lambda device: times * memory._status_bytes("VmHWM")
        keeper.on_step_end(SimpleNamespace(world_size=1), None, None)
def churn():
    for _ in range(3):
        torch.ones(6 * 2**20)  # raises the limit of the C library
    held = []
    kept = []
    for _ in range(8):
        held.append(torch.ones(2**20)); kept.append(torch.ones(2**16))
    del held
    end = [torch.ones(2**20) for _ in range(40)]  # nothing lies behind them
    del end
    return kept
torch.ones(10)
peak = ProcessPeak(torch.device("cpu"))
kept = churn()
now = int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) * 1024
print(done, (now - peak.level) // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="about the GNU C library")
def test_blocks_go_back_to_the_system_where_the_model_is_wide():
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def held(width: int, *room: float | str, **more: str) -> list[str]:
        command = [sys.executable, "-c", HOLDS, str(width), *map(str, room)]
        done = subprocess.run(command, env={**env, **more}, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.split()

    wide, narrow = held(256), held(96)
    assert wide[0] == "True" and int(wide[1]) < 8
    assert narrow[0] == "False" and int(narrow[1]) > 20
    assert held(256, MALLOC_MMAP_THRESHOLD_="100000000")[0] == "False"
    assert return_large_blocks(8) is False
    # Not any more after a step that left room for thrice as much, until most of the room is taken.
    assert int(held(256, 2.9, 9.0)[1]) < 8 and int(held(256, 3.1, 2.1)[1]) > 140
    assert int(held(256, 3.1, 1.0, 9.0)[1]) < 8
    # Nor is a second training of the process left without a watch.
    assert int(held(256, 3.1, "then")[1]) < 8 and int(held(256, 3.1, "then", 3.1, 2.1)[1]) > 140
    assert int(held(256, 3.1, "then", 3.1, 1.0)[1]) < 8 and int(held(96, 3.1, "then", 3.1, 1.0)[1]) > 20
