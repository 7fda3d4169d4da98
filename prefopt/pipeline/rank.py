"""The process of one rank of a stage: `python -m prefopt.pipeline.rank ADDRESS`, started by `accelerate launch`.

It hangs on the socket of the process that had it started, takes its work from there, says there what came of it, and
ends with it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Client, Connection
from typing import Any

from prefopt.errors import Interrupted
from prefopt.pipeline import loading
from prefopt.pipeline.context import StageResult, StopFlag
from prefopt.pipeline.launch import RANK_KEY, RankDone, RankEnded, RankJob
from prefopt.pipeline.messages import Failed, Job, Log, Message, Progress
from prefopt.pipeline.stages import stage_function
from prefopt.pipeline.worker import as_prefopt_error, peak_bytes, seed_process, stage_context

_DONE = threading.Event()
_SPEAKING = threading.Lock()


def main(address: str) -> int:
    """Do the work of one rank; returns its exit code."""
    faulthandler.enable()
    loading.fix_environment(os.environ)
    rank = int(os.environ["RANK"])
    connection = Client(address, authkey=bytes.fromhex(os.environ.pop(RANK_KEY)))
    work: RankJob = connection.recv()
    stop = StopFlag()
    # In every thread, and before libraries start theirs: the signal is left to the thread that waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.register_at_fork(after_in_child=_take_signals)
    threading.Thread(target=_end, args=(connection,), name="end-watch", daemon=True).start()
    threading.Thread(target=_listen, args=(connection, stop), name="launcher-watch", daemon=True).start()
    try:
        result = _run(work, rank, stop, connection)
    except BaseException as error:
        text = traceback.format_exc()
        print(text, file=sys.stderr)
        _send(connection, Failed(as_prefopt_error(error, work.job), text))
        # All ranks are interrupted at the same step. Any other error is one rank's, and the others must be ended.
        return 0 if isinstance(error, Interrupted) else 1
    _send(connection, RankDone(result if rank == 0 else None, peak_bytes()))
    return 0


def _run(work: RankJob, rank: int, stop: StopFlag, connection: Connection[Any, Any]) -> StageResult:
    job = work.job

    def log(text: str) -> None:
        if rank == 0:
            print(text, flush=True)
            _send(connection, Log(text))

    def progress(step: int, total: int, metrics: Mapping[str, float]) -> None:
        if rank == 0:
            _send(connection, Progress(step, total, {name: float(value) for name, value in metrics.items()}))

    _join(job)
    seed_process(job)
    return stage_function(job.module)(job.spec, work.inputs, stage_context(job, progress, log, stop, rank))


def _join(job: Job) -> None:
    """Meet the other ranks, each on its own device."""
    if not job.uses_torch:
        return
    import torch
    from accelerate import PartialState

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    PartialState(cpu=not torch.cuda.is_available())


def _send(connection: Connection[Any, Any], message: Message | RankDone | RankEnded) -> None:
    # Nobody is there to hear; this process is about to end as well.
    with _SPEAKING, contextlib.suppress(OSError):
        connection.send(message)


def _take_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _end(connection: Connection[Any, Any]) -> None:
    """Accelerate ends the ranks that are left when one has failed: they say so, and are not taken for the cause."""
    signal.sigwait({signal.SIGTERM})
    _send(connection, RankEnded())
    os._exit(128 + signal.SIGTERM)


def _listen(connection: Connection[Any, Any], stop: StopFlag) -> None:
    while True:
        try:
            connection.recv()
        except (EOFError, OSError):
            if not _DONE.is_set():
                # accelerate gives every rank a session of its own: data loaders end with it.
                os.killpg(0, signal.SIGKILL)
            return
        stop.set()


if __name__ == "__main__":
    code = main(sys.argv[1])
    _DONE.set()
    sys.exit(code)
