"""Importing libraries once, before the processes of stages are forked, and telling what could not be imported."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import MutableMapping

# Names the file that the server's output goes to.
SERVER_LOG = "PREFOPT_SERVER_LOG"

# Set before the libraries that read them are imported.
FIXED_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Asks the driver how many devices there are, and not the runtime, which could not be used after a fork any more.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}

# A user's own choice of the first keeps all of them away. Threads of OpenMP that wait by spinning take the processor
# from those they wait for: where other programs run as well, two threads on two cores were seen to train 13 times
# slower than ones that sleep at once. Waking one up takes longer than adding two matrices, so they spin for some
# microseconds first: on an idle machine nearly as good as spinning for ever, and on a busy one as sleeping.
DEFAULT_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}

# Module → why it could not be imported. The fork server itself would swallow an ImportError.
FAILURES: dict[str, str] = {}


def fix_environment(environment: MutableMapping[str, str]) -> None:
    """Turns off telemetry and what cannot be forked, and lets threads wait in peace."""
    environment.update(FIXED_ENVIRONMENT)
    if "OMP_WAIT_POLICY" not in environment:
        environment.update({**DEFAULT_ENVIRONMENT, **environment})


def threads() -> int:
    """How many threads torch computes with: `PREFOPT_THREADS`, `OMP_NUM_THREADS`, or the cores of this process."""
    for name in ("PREFOPT_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdigit() and int(os.environ[name]) > 0:
            return int(os.environ[name])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_torch() -> None:
    """Lets torch compute with as many threads as it may, and with the products that are quick on this processor."""
    # By name, as the runner's side of this package must not depend on them.
    importlib.import_module("torch").set_num_threads(threads())
    importlib.import_module("prefopt.models.products").use_quick_products()


def show_one_device(environment: MutableMapping[str, str]) -> None:
    """Leaves a stage one CUDA device: transformers would split every batch over all it sees, and so train otherwise."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible != "":
        environment["CUDA_VISIBLE_DEVICES"] = (visible or "0").split(",")[0]


def load(module: str) -> None:
    """Imports a module; what goes wrong is kept in `FAILURES` for the first stage to tell."""
    try:
        importlib.import_module(module)
    # Whatever an import may raise: the server must live, and the stage that needs the module raises it again.
    except Exception as error:
        FAILURES[module] = f"{type(error).__name__}: {error}"


def warnings() -> list[str]:
    """What a stage process should tell about the server it was forked from."""
    lines = [f"{module} could not be imported ahead of time: {why}" for module, why in FAILURES.items()]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        lines.append("a library started CUDA while it was imported; stages forked after it cannot use the device")
    return lines
