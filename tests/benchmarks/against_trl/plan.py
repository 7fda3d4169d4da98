"""What is measured, in which order: each measurement is one process, and sides take turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prefopt.pipeline.loading import DEFAULT_ENVIRONMENT

HERE = "tests.benchmarks.against_trl"
PREFOPT, TRL = "prefopt", "TRL"
# What a freed block leaves behind depends on glibc's moving threshold; fixed for both sides, a peak is the tensors'.
EQUAL_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**21)}
WARMUP_STEPS = 2  # as the peer's script has it
MEMORY_ROUNDS = 2  # a peak hardly varies
DPO_SIDES: Mapping[str, tuple[str, ...]] = {TRL: (), "TRL, precomputed": ("--precompute",)}
REWARD_SIDES: Mapping[str, tuple[str, ...]] = {TRL: ()}
_BF16 = ("--dtype", "bfloat16")
CUDA_SIDES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "dpo": {TRL: (), "TRL, bf16 weights": _BF16, "TRL, bf16 weights, precomputed": (*_BF16, "--precompute")},
    "reward": {TRL: (), "TRL, bf16 weights": _BF16},
}
PARTS = ("training", "memory", "cuda")


@dataclass(frozen=True)
class Settings:
    """Sizes of a benchmark; batches and numbers count pairs."""

    pairs: int = 64
    batch: int = 4
    max_length: int = 1024
    tokens: tuple[int, ...] = (1024,)
    rounds: int = 3
    cuda: bool = False


@dataclass(frozen=True)
class Case:
    """One training that the sides are compared on.

    Attributes:
        part: Of the benchmark, one of `PARTS`.
        method: `dpo` or `reward`.
        shape: Of the model in `random_pairs`; None for the peers' model and pairs.
        peers: Variants of TRL by name, with the words that make them.
    """

    part: str
    method: str
    shape: str | None
    pairs: int
    batch: int
    max_length: int
    rounds: int
    peers: Mapping[str, tuple[str, ...]] = field(hash=False)

    @property
    def name(self) -> str:
        return f"{self.part}/{self.method}/{self.max_length}"

    @property
    def sides(self) -> tuple[str, ...]:
        return (PREFOPT, *self.peers)

    @property
    def data(self) -> str:
        """Name of the folder with model and pairs."""
        return "hh" if self.shape is None else f"{self.shape}-{self.max_length}-{self.written_pairs}"

    @property
    def written_pairs(self) -> int:
        """Pairs of all steps, those of warm-up included."""
        return self.pairs + WARMUP_STEPS * self.batch

    @property
    def start(self) -> str:
        """Name of the folder with TRL's rows and adapter."""
        return f"{self.data}-{self.method}-{self.pairs}-{self.batch}-{self.max_length}"


@dataclass(frozen=True)
class Measurement:
    """One process: a module of this package and its words; `key` names it in the file of results."""

    key: str
    module: str
    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        return ["-m", f"{HERE}.{self.module}", *self.words]


def cases(settings: Settings) -> list[Case]:
    """The trainings of a benchmark."""
    if settings.cuda:
        return [
            Case("cuda", method, "qwen2-0.5b", settings.pairs, settings.batch, tokens, settings.rounds, peers)
            for tokens in settings.tokens
            for method, peers in CUDA_SIDES.items()
        ]
    found = []
    for method, peers in (("dpo", DPO_SIDES), ("reward", REWARD_SIDES)):
        size = (settings.batch, settings.max_length, settings.rounds, peers)
        found.append(Case("training", method, None, settings.pairs, *size))
    for tokens in settings.tokens:
        for method, peers in (("dpo", DPO_SIDES), ("reward", REWARD_SIDES)):
            rounds = min(settings.rounds, MEMORY_ROUNDS)
            # Two steps of warm-up and one more: the peak is reached in the first.
            found.append(Case("memory", method, "llama-32k", settings.batch, settings.batch, tokens, rounds, peers))
    return found


def training_words(case: Case, folder: Path) -> tuple[str, ...]:
    """The words that both sides take: those of the peer's script."""
    sizes = {"--pairs": case.pairs, "--batch": case.batch, "--max-length": case.max_length}
    words = [case.method, str(folder / case.data), *(word for item in sizes.items() for word in map(str, item))]
    return (*words, "--bf16") if case.part == "cuda" else tuple(words)


def recording(case: Case, folder: Path, out: Path) -> Measurement:
    """Writes to `out` where TRL's training starts, for prefopt to start there."""
    return Measurement(f"{case.name}/start", "trl_side", ("--record", str(out), *training_words(case, folder)))


def measurements(case: Case, folder: Path) -> list[Measurement]:
    """All processes of a case, in order: sides in turn, and the rate of matrix products before and between.

    Args:
        case: The training.
        folder: Where data and starts are.
    """
    words, start = training_words(case, folder), ("--start", str(folder / case.start))
    environment = EQUAL_MALLOC if case.part == "memory" else {}
    bf16 = ("--bf16",) if case.part == "cuda" else ()
    rated = case.part != "memory"

    def rate(number: int) -> list[Measurement]:
        product = Measurement(f"{case.name}/matmul/{number}", "matmul", (str(folder / case.data), *bf16))
        return [product] if rated else []

    found = rate(0)
    for turn in range(1, case.rounds + 1):
        ours = {**DEFAULT_ENVIRONMENT, **environment}  # of a stage's process
        found.append(Measurement(f"{case.name}/{PREFOPT}/{turn}", "prefopt_side", (*start, *words), ours))
        for side, more in case.peers.items():
            options = tuple(word for word in more if word != "--precompute")
            asked = (*start, *options, *words, "--precompute") if "--precompute" in more else (*options, *words)
            found.append(Measurement(f"{case.name}/{side}/{turn}", "trl_side", asked, environment))
        found += rate(turn)
    if rated:
        found.append(Measurement(f"{case.name}/flops", "prefopt_side", (*start, *words, "--flops")))
    return found
