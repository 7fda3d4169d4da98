"""Speed and memory of prefopt's PPO against the last PPO that TRL had: "PPO against TRL's" of docs/benchmarks.md.

usage: python tests/benchmarks/ppo.py [--cuda] [--results FILE] [--fresh] [--dry-run] [--episodes 64] [--rounds 3]

The peers' side, which is not part of this project, is in the folder that PREFOPT_BENCH names (../shared/bench without
it): make_model.py writes model and prompts, and peer_trl_ppo.py times TRL 1.12, which pip puts beside FILE. prefopt
trains the ppo stage of tests/learning/frontier/frontier.yaml with that script's sizes. Sides take turns, each time in a
new process, and nothing else should run on the machine. What is finished is in FILE (bench/ppo.jsonl) and is not
measured again, unless with --fresh or after a change of prefopt, of the peers, of a library or of the machine. Exit
codes: 1 when a process fails, 2 without the peers' side, 3 without a CUDA device.

A machine without network needs the peers' folder, what make_model.py reads, and TRL 1.12 beside FILE, which this writes
where there is one: python -m pip install --no-deps trl==1.12.0 --target bench/trl-1.12.0
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from prefopt.pipeline.loading import DEFAULT_ENVIRONMENT  # noqa: E402 - the project around this script
from tests.benchmarks.against_trl import ppo_page  # noqa: E402 - the package around this script
from tests.benchmarks.against_trl.ledger import Ledger, read_result  # noqa: E402
from tests.benchmarks.against_trl.page import replace_marked, update_json  # noqa: E402
from tests.benchmarks.against_trl.peers import MODEL, peers_folder  # noqa: E402
from tests.benchmarks.against_trl.plan import EQUAL_MALLOC, HERE  # noqa: E402
from tests.benchmarks.against_trl.ppo_page import PREFOPT, TRL  # noqa: E402
from tests.benchmarks.against_trl.ppo_trl_side import PEER  # noqa: E402
from tests.benchmarks.shell import machine  # noqa: E402
from tests.benchmarks.training import about, digest, has_cuda, run, states, whole  # noqa: E402

TRL_RELEASE = "1.12.0"
MEASURING = ("ppo_side", "ppo_trl_side", "clock", "matmul", "process_memory")


@dataclass(frozen=True)
class Step:
    """One process; `key` names it in the file of results."""

    key: str
    command: list[str]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Folders:
    """Where everything is that processes read."""

    data: Path
    reward: Path
    release: Path

    def side(self, side: str, episodes: int) -> list[str]:
        """The words of a side."""
        size = ["--episodes", str(episodes)]
        if side == TRL:
            return ["-m", f"{HERE}.ppo_trl_side", str(self.data), *size]
        words = ["--reward", str(self.reward), "--value", PREFOPT[side].value]
        return ["-m", f"{HERE}.ppo_side", str(self.data), *words, *size]


def steps(folders: Folders, episodes: int, rounds: int, *, cuda: bool) -> Iterator[Step]:
    """All processes in order: sides in turn, and the rate of matrix products before and between."""
    release = {"PYTHONPATH": f"{folders.release}:{ROOT}"}
    sides = ppo_page.sides(cuda=cuda)

    def of_side(part: str, side: str, count: int, more: Mapping[str, str]) -> Step:
        # Ours has what a stage's process has.
        own = release if side == TRL else {**DEFAULT_ENVIRONMENT, **PREFOPT[side].environment}
        return Step(f"{part}/{side}", folders.side(side, count), {**own, **more})

    for turn in range(rounds + 1):
        if turn:
            yield from (of_side(f"speed/{turn}", side, episodes, {}) for side in sides)
        yield Step(f"matmul/{turn}", ["-m", f"{HERE}.matmul", str(folders.data)], {})
    yield from (of_side("memory", side, 16, EQUAL_MALLOC) for side in sides)
    for side in sides[:-1]:
        yield Step(f"flops/{side}", [*folders.side(side, 16), "--flops"], {})


def prepare(folders: Folders, peers: Path, *, cuda: bool) -> None:
    """Write model, prompts and reward model, and install TRL's release."""
    whole(folders.data, lambda out: run([str(peers / MODEL), str(out)], {}, cuda=cuda))
    written = [*folders.side(next(iter(PREFOPT)), 16), "--write"]

    def reward(out: Path) -> None:
        words = [str(out) if word == str(folders.reward) else word for word in written]
        run(words, {}, cuda=cuda)

    whole(folders.reward, reward)
    install = ["-m", "pip", "install", "--quiet", "--no-deps", f"trl=={TRL_RELEASE}", "--target"]
    whole(folders.release, lambda out: run([*install, str(out)], {}, cuda=cuda))


def measure(found: list[Step], ledger: Ledger, *, cuda: bool) -> dict[str, Any]:
    """Run what is not measured yet, one process after another; results by key."""
    results: dict[str, Any] = {}
    for step in found:
        row = ledger.find(step.key, step.command)
        if row is None:
            result = read_result(run(step.command, dict(step.environment), cuda=cuda))
            print(f"{step.key}: {result}", flush=True)
            row = ledger.add(step.key, step.command, result)
        results[step.key] = row["result"]
    return results


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", action="store_true", help="on a CUDA device instead of the CPU")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "ppo.jsonl", help="bench/ppo.jsonl")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where benchmarks.md and benchmarks.json are")
    parser.add_argument("--episodes", type=int, default=64, help="counted episodes; 64")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side; 3")
    a = parser.parse_args(words)
    peers, told = peers_folder(), about()
    of_data, state = states(peers, told)
    measuring = [ROOT.joinpath("tests", "benchmarks", "against_trl", f"{name}.py") for name in MEASURING]
    folder = a.results.absolute().parent / of_data
    folders = Folders(folder / "hh", folder / "reward", folder.parent / f"trl-{TRL_RELEASE}")
    found = list(steps(folders, a.episodes, a.rounds, cuda=a.cuda))
    if a.dry_run:
        for step in found:
            print(shlex.join([*(f"{k}={v}" for k, v in step.environment.items()), "python", *step.command]))
        return 0
    if a.cuda and not has_cuda():
        print("there is no CUDA device", file=sys.stderr)
        return 3
    prepare(folders, peers, cuda=a.cuda)
    ledger = Ledger(a.results, digest([peers / PEER, *measuring], state, a.cuda), fresh=a.fresh)
    results = measure(found, ledger, cuda=a.cuda)
    marker = f"python tests/benchmarks/ppo.py{' --cuda' if a.cuda else ''}"
    told["hardware"] = {**told["hardware"], "device": results["matmul/0"]["device"]}
    page = ppo_page.markdown(results, a.rounds, machine(), told["date"], cuda=a.cuda)
    replace_marked(a.docs / "benchmarks.md", marker, page)
    update_json(a.docs / "benchmarks.json", "ppo-cuda" if a.cuda else "ppo", {**told, "measurements": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
