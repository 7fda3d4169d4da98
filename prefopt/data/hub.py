"""Data sets that the `datasets` library holds: repositories on the Hub, and folders written by `save_to_disk`.

The Hub is asked once, with a time limit, before anything is loaded: the library's own retries take up to a minute and
end in a message that names neither the repository nor a remedy. No code of a repository is ever run.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefopt.errors import DataError, EnvironmentFault, PrefoptError
from prefopt.recipe.schema import DataSpec

REQUEST_TIMEOUT_SECONDS = 8.0
ANSWER_TIMEOUT_SECONDS = 12.0  # name resolution has no limit of its own
_LOCAL_COPY = "give a local path instead"
_LOG_IN = "accept its terms on its page, then log in with `hf auth login` or set HF_TOKEN"


def rows(spec: DataSpec) -> Iterator[dict[str, Any]]:
    """Yields the rows of a Hub data set; reads the cache alone where `HF_HUB_OFFLINE` is set.

    Raises:
        EnvironmentFault: If the repository cannot be had; within 15 s, with what to do.
        DataError: If it has no such configuration or split, or needs code of its own.
    """
    from huggingface_hub import constants

    offline = bool(constants.HF_HUB_OFFLINE)
    if not offline:
        _ask_hub(spec)
    import datasets  # a second; the answer of the Hub need not wait for it

    try:
        data = datasets.load_dataset(
            spec.path, name=spec.name, data_dir=spec.data_dir, revision=spec.revision, split=spec.split
        )
    except Exception as error:
        raise _explain(spec, error, offline) from error
    yield from data


def saved_rows(folder: Path, spec: DataSpec) -> Iterator[dict[str, Any]]:
    """Yields the rows of a folder written by `save_to_disk`, of the split `spec.split` where it has splits.

    Raises:
        DataError: If the folder is damaged or lacks the split.
    """
    import datasets

    try:
        data = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(f"{folder}: cannot be read as a saved data set ({error})", "save it again") from error
    if isinstance(data, datasets.DatasetDict):
        if spec.split not in data:
            raise DataError(f"{folder}: no split '{spec.split}'", f"it has: {', '.join(data)}")
        data = data[spec.split]
    yield from data.with_format(None)


def _ask_hub(spec: DataSpec) -> None:
    """One request that finds out whether the repository can be had."""
    from huggingface_hub import HfApi

    answers: queue.Queue[BaseException | None] = queue.Queue()

    def ask() -> None:
        try:
            HfApi().dataset_info(spec.path, revision=spec.revision, timeout=REQUEST_TIMEOUT_SECONDS)
            answers.put(None)
        except Exception as error:
            answers.put(error)

    # A daemon: a request that hangs in name resolution must not keep the process alive.
    threading.Thread(target=ask, name="prefopt-hub-preflight", daemon=True).start()
    try:
        error = answers.get(timeout=ANSWER_TIMEOUT_SECONDS)
    except queue.Empty:
        error = TimeoutError(f"no answer within {ANSWER_TIMEOUT_SECONDS:.0f} s")
    if error is not None:
        raise _explain(spec, error, offline=False) from error


def _explain(spec: DataSpec, error: BaseException, offline: bool) -> PrefoptError:
    """The error in terms of the recipe: which repository, what is wrong, what to do."""
    repo = f"data set '{spec.path}'" + (f" at revision '{spec.revision}'" if spec.revision else "")
    names = {base.__name__ for link in _chain(error) for base in type(link).__mro__}
    status = next((code for link in _chain(error) if (code := _status(link))), None)
    reason = str(error).strip().split("\n")[0]
    if offline and not isinstance(error, ValueError):
        return EnvironmentFault(
            f"{repo} is not in the cache, and HF_HUB_OFFLINE forbids the network ({reason})",
            f"unset HF_HUB_OFFLINE once to download it, or {_LOCAL_COPY}",
        )
    if "GatedRepoError" in names or status == 403:
        return EnvironmentFault(f"{repo} is gated", _LOG_IN)
    if "RevisionNotFoundError" in names:
        return EnvironmentFault(f"{repo} does not exist on the Hub", "check `revision`")
    if names & {"RepositoryNotFoundError", "DatasetNotFoundError"} or status in (401, 404):
        return EnvironmentFault(
            f"{repo} was not found on the Hub, or is private", f"check `path`; if private: {_LOG_IN}"
        )
    if status == 429:
        return EnvironmentFault(f"the Hub limits requests for {repo}", "wait a few minutes, or set HF_TOKEN")
    if "HFValidationError" in names:
        return DataError(f"'{spec.path}' is neither a file nor a Hub id ({reason})")
    if isinstance(error, RuntimeError) and "script" in reason.lower():
        return DataError(f"{repo} is made by a script, which is never run", "try revision: refs/convert/parquet")
    if isinstance(error, ValueError):
        return DataError(f"{repo}: {reason}", "check `name`, `split` and `data_dir`")
    return EnvironmentFault(
        f"the Hub could not be reached for {repo} ({type(error).__name__}: {reason})",
        f"check the network; HF_HUB_OFFLINE=1 uses a cached copy; or {_LOCAL_COPY}",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _status(error: BaseException) -> int | None:
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) else None
