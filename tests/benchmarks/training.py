"""Speed and memory of prefopt's DPO and reward trainers against TRL's: "Training against TRL" of docs/benchmarks.md.

usage: python tests/benchmarks/training.py [--cuda] [--results FILE] [--fresh] [--dry-run] [sizes; see --help]

The peers' side, which is not part of this project, is in the folder that PREFOPT_BENCH names (../shared/bench without
it): make_model.py writes the model and the pairs, and peer_trl.py times TRL. Both sides train the same rows in the same
steps from the same weights, in turn, each time in a new process, and nothing else should run on the machine. What is
finished is in FILE (bench/results.jsonl) and is not measured again, unless with --fresh or after a change of prefopt,
of the peers, of a library or of the machine.

On the CPU the speed is that of make_model.py's model and pairs, the memory that of rows of 1,024 tokens and a
vocabulary of 32,000. With --cuda both are those of a model of Qwen2 0.5B's shape, in bfloat16. Exit codes: 1 when a
process fails or the losses of the two sides differ, 2 without the peers' side, 3 without a CUDA device.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.against_trl import page, plan  # noqa: E402 - the package around this script
from tests.benchmarks.against_trl.ledger import Ledger, Row, read_result  # noqa: E402
from tests.benchmarks.against_trl.peers import MODEL, PEER, peers_folder  # noqa: E402
from tests.benchmarks.against_trl.plan import Case, Measurement, Settings  # noqa: E402
from tests.benchmarks.against_trl.summary import disagreements  # noqa: E402
from tests.benchmarks.shell import processor  # noqa: E402

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
TOLD = (
    ("pairs_per_second", 1, "pairs/s"),
    ("peak_bytes", 2**20, "MiB"),
    ("cuda_peak_bytes", 2**20, "MiB on the device"),
    ("flops_per_second", 1e9, "GFLOP/s"),
    ("flops_per_pair", 1e9, "GFLOP a pair"),
)
LONGEST = (1024, 2048, 4096)
QUIET = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
MEASURING = ("clock", "matmul", "prefopt_side", "process_memory", "random_pairs", "start", "trl_side")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", action="store_true", help="on a CUDA device instead of the CPU")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results.jsonl", help="bench/results.jsonl")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where benchmarks.md and benchmarks.json are")
    parser.add_argument("--pairs", type=int, default=64, help="counted pairs; 64")
    parser.add_argument("--batch", type=int, default=4, help="pairs of a step; 4")
    parser.add_argument("--max-length", type=int, default=1024, help="most tokens of a row; 1024")
    parser.add_argument("--tokens", type=int, nargs="+", help="tokens of a row of the random pairs")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side; 3")
    return parser


def settings_of(a: argparse.Namespace) -> Settings:
    tokens = tuple(a.tokens or (LONGEST if a.cuda else LONGEST[:1]))
    return Settings(a.pairs, a.batch, a.max_length, tokens, a.rounds, a.cuda)


def about() -> dict[str, Any]:
    """Date, hardware and versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": {"processor": processor(), "cores": os.cpu_count(), "memory_gib": round(memory, 1)},
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def digest(files: list[Path], *more: object) -> str:
    """Of the content of files and of whatever else can be printed."""
    found = hashlib.sha256(repr(more).encode())
    for file in files:
        found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()[:12]


def states(peers: Path, told: dict[str, Any]) -> tuple[str, str]:
    """What data and starts depend on, and what measurements depend on beside."""
    measuring = [ROOT.joinpath("tests", "benchmarks", "against_trl", f"{name}.py") for name in MEASURING]
    of_data = digest([peers / MODEL, peers / PEER, *measuring], told["versions"])
    sources = sorted((ROOT / "prefopt").rglob("*.py"))
    threads = {name: os.environ.get(name) for name in THREADS}
    return of_data, digest(sources, of_data, told["hardware"], told["python"], threads)


def environment(more: dict[str, str], scratch: str, *, cuda: bool) -> dict[str, str]:
    """Of a process: the same for both sides; the trainers' output folders go to `scratch`."""
    hidden = {} if cuda else {"CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **QUIET, **hidden, **more, "TMPDIR": scratch}


def run(words: list[str], more: dict[str, str], *, cuda: bool) -> str:
    """What a process printed.

    Raises:
        SystemExit: With exit code 1 and the end of what it said, when it fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        variables = environment(more, scratch, cuda=cuda)
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, check=False, cwd=ROOT, env=variables
        )
    if done.returncode == 0:
        return done.stdout
    if cuda and "OutOfMemoryError" in done.stderr:
        return '{"failed": "out of memory"}\n'
    print(f"{shlex.join(words)}\nended with {done.returncode}:\n{done.stderr[-3000:]}", file=sys.stderr)
    raise SystemExit(1)


def whole(folder: Path, written: Callable[[Path], object]) -> None:
    """Have a folder written, unless it is there; one that a killed process wrote in part is not taken for it."""
    if folder.exists():
        return
    print(f"writing {folder.name}", flush=True)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    written(unfinished)
    unfinished.rename(folder)


def prepare(case: Case, folder: Path, peers: Path) -> None:
    """Write the model and pairs of a case, and where TRL starts on them."""

    def data(out: Path) -> None:
        sizes = ["--tokens", str(case.max_length), "--pairs", str(case.written_pairs)]
        random_pairs = ["-m", f"{plan.HERE}.random_pairs", str(out), "--shape", str(case.shape), *sizes]
        run([str(peers / MODEL), str(out)] if case.shape is None else random_pairs, {}, cuda=case.part == "cuda")

    def start(out: Path) -> None:
        run(plan.recording(case, folder, out).command, {}, cuda=case.part == "cuda")

    whole(folder / case.data, data)
    whole(folder / case.start, start)


def measure(cases: list[Case], folder: Path, peers: Path, ledger: Ledger) -> dict[str, Row]:
    """Run what is not measured yet, one process after another; rows of the file of results by key."""
    rows: dict[str, Row] = {}
    for case in cases:
        steps = plan.measurements(case, folder)
        if any(ledger.find(step.key, step.command) is None for step in steps):
            prepare(case, folder, peers)
        for step in steps:
            row = ledger.find(step.key, step.command)
            rows[step.key] = row or once(step, ledger, cuda=case.part == "cuda")
    return rows


def once(step: Measurement, ledger: Ledger, *, cuda: bool) -> Row:
    begun = time.perf_counter()
    result = read_result(run(step.command, dict(step.environment), cuda=cuda))
    told = [f"{result[name] / unit:.4g} {word}" for name, unit, word in TOLD if name in result]
    print(f"{step.key}: {', '.join(told) or result} ({time.perf_counter() - begun:.0f} s)", flush=True)
    return ledger.add(step.key, step.command, result)


def write(cases: list[Case], rows: dict[str, Row], settings: Settings, docs: Path) -> None:
    """Put tables into benchmarks.md and everything into benchmarks.json."""
    told, results = about(), {key: row["result"] for key, row in rows.items()}
    rate = results[f"{cases[0].name}/matmul/0"]
    hardware = told["hardware"] = {**told["hardware"], "threads": rate["threads"], "device": rate["device"]}
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    machine = (
        f"{hardware['processor']}, {hardware['cores']} cores, torch threads: {hardware['threads']}, "
        f"{hardware['memory_gib']:.0f} GiB{', ' + rate['device'] if settings.cuda else ''}; {told['system']}; "
        f"Python {told['python']}; {versions}; {told['date']}"
    )
    marker, device = (page.CUDA, "cuda") if settings.cuda else (page.CPU, "cpu")
    page.replace_marked(docs / "benchmarks.md", marker, page.markdown(cases, results, machine))
    page.update_json(docs / "benchmarks.json", device, page.record(cases, rows, settings, told))


def has_cuda() -> bool:
    """Asks a process of its own: this one imports no torch."""
    return (
        subprocess.run([sys.executable, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]).returncode
        == 0
    )


def main(words: list[str] | None = None) -> int:
    a = arguments().parse_args(words)
    peers, settings, told = peers_folder(), settings_of(a), about()
    cases = plan.cases(settings)
    of_data, state = states(peers, told)
    folder = a.results.absolute().parent / of_data
    if a.dry_run:
        for case in cases:
            for step in (plan.recording(case, folder, folder / case.start), *plan.measurements(case, folder)):
                print(shlex.join([*(f"{k}={v}" for k, v in step.environment.items()), "python", *step.command]))
        return 0
    if a.cuda and not has_cuda():
        print("there is no CUDA device", file=sys.stderr)
        return 3
    rows = measure(cases, folder, peers, Ledger(a.results, state, fresh=a.fresh))
    wrong = disagreements(cases, {key: row["result"] for key, row in rows.items()})
    if wrong:
        print("\n".join(["nothing is written, for the two sides did not do the same:", *wrong]), file=sys.stderr)
        return 1
    write(cases, rows, settings, a.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
