"""Runs the peer's script as it is, and prints a second JSON line: its memory, and the time of its reference pass.

usage: python -m tests.benchmarks.against_trl.trl_side [--start DIR | --record DIR] [--dtype bfloat16]
       dpo|reward DIR [what the peer's script takes]

With --precompute the peer computes the reference before its clock runs. That pass is timed here, after a first batch
that is not counted, and --start names what --record wrote, which says how much of the pass belongs to counted pairs.
--record writes the rows of the training, in order and cut as they are there, and its fresh adapter, without training.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.benchmarks.against_trl.clock import counted_share, seconds
from tests.benchmarks.against_trl.peers import PEER, peer_script
from tests.benchmarks.against_trl.process_memory import PeakMemory
from tests.benchmarks.against_trl.start import Recorder, read_rows


def time_reference(trainer_class: Any, passes: list[float]) -> None:
    """Have the pass that computes the reference of all rows append its seconds to `passes`."""
    whole_pass = trainer_class._precompute_ref_logps

    def timed(self: Any, dataset: Any, name: str, batch_size: int) -> Any:
        whole_pass(self, dataset.select(range(min(batch_size, len(dataset)))), name, batch_size)
        start = seconds()
        rows = whole_pass(self, dataset, name, batch_size)
        passes.append(seconds() - start)
        return rows

    trainer_class._precompute_ref_logps = timed


def record(peer: ModuleType, folder: Path) -> None:
    recorder = Recorder()
    for trainer_class in (peer.DPOTrainer, peer.RewardTrainer):
        trainer_class.training_step = lambda *args: recorder.step(*args)
    peer.main()
    recorder.write(folder)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--dtype", help="of the weights; the peer's own choice is float32")
    own, words = parser.parse_known_args()
    peer = peer_script()
    memory = PeakMemory()
    sys.argv = [PEER, *words]
    if own.record:
        record(peer, own.record)
        return
    if own.dtype:
        for name in ("DPOConfig", "RewardConfig"):
            config = functools.partial(getattr(peer, name), model_init_kwargs={"dtype": own.dtype})
            setattr(peer, name, config)
    passes: list[float] = []
    if "--precompute" in words:
        time_reference(peer.DPOTrainer, passes)
    peer.main()
    told = memory.report()
    if "--precompute" in words:
        batch = int(words[words.index("--batch") + 1])
        (reference,) = passes
        told |= {"reference_seconds": reference, "reference_share": counted_share(read_rows(own.start), batch)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
