"""Where the peers' side of the benchmark is: scripts that are not part of this project."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[3]
VARIABLE = "PREFOPT_BENCH"
MODEL, PEER = "make_model.py", "peer_trl.py"
_IMPORTING = threading.Lock()
"""Scripts import packages that load their parts when asked for them, and do that wrongly in two threads at a time."""


def peers_folder(root: Path = ROOT) -> Path:
    """The folder that `PREFOPT_BENCH` names, `../shared/bench` beside the project without it.

    Args:
        root: The project.

    Raises:
        SystemExit: With exit code 2, after saying what is missing.
    """
    named = os.environ.get(VARIABLE)
    folder = Path(named) if named else root.parent / "shared" / "bench"
    missing = [name for name in (MODEL, PEER) if not (folder / name).is_file()]
    if missing:
        said = f"{VARIABLE} is {named}" if named else f"{VARIABLE} is not set, so it is looked for in {folder}"
        print(
            f"the peers' side of the benchmark is missing: {' and '.join(missing)}. {said}. Set {VARIABLE} to the "
            f"folder that holds {MODEL}, which writes the model and the pairs, and {PEER}, which times TRL on them.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return folder.absolute()


def peer_script(name: str = PEER) -> ModuleType:
    """A script of the peers, imported by its own name.

    Raises:
        FileNotFoundError: When it is not there.
    """
    path = peers_folder() / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    with _IMPORTING:
        spec.loader.exec_module(module)
    return module
