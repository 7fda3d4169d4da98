"""Metrics to Weights & Biases, which must never cost a training run.

What wandb 0.31 does by itself, and what is done about it here:

* without a key, `init` raises or asks on the terminal → a key is looked for first, and offline is the answer to none;
* a refused server costs 101 s → the server is probed for at most 5 s before `init` hears of it, and `init` is bounded;
* after a failed `init` the run id stays "in use" in wandb's service → `teardown` before the second, offline, `init`;
* `finish` waits without limit → bounded, with the command that sends the rest later;
* offline, `finish` returns before the file is written → the service is ended, which waits for that;
* it records the machine, git state, installed packages and console → all switched off.

Whatever wandb raises is caught here, counted in `errors` and reported once; training goes on.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prefopt.recipe.schema import WandbSpec
from prefopt.store.files import write_atomic
from prefopt.store.secrets import redact
from prefopt.tracking.flagged import readable
from prefopt.tracking.redaction import allowed_config

RUN_ID_FILE = "wandb_run_id"
STEP_AXIS = "step"

T = TypeVar("T")


@dataclass(frozen=True)
class RunIdentity:
    """Where a stage's numbers belong: `run` is the group, `kind` the job type, `stage` the name."""

    run: str
    stage: str
    kind: str
    key: str


@dataclass(frozen=True)
class Limits:
    """The longest that wandb may hold up training, in seconds.

    Attributes:
        probe: For the server to answer at all.
        init: For the probe and both attempts to start, online and then offline, together.
        finish: For what is not sent yet at the end.
    """

    probe: float = 5.0
    init: float = 14.0
    finish: float = 60.0


class _TookTooLongError(Exception):
    """A bounded call did not return in time."""


def _bounded(call: Callable[[], T], seconds: float) -> T:
    """Runs a call in a daemon thread; raises what it raises, or _TookTooLongError."""
    box: list[T] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            box.append(call())
        except BaseException as error:  # handed to the caller's thread below
            raised.append(error)

    thread = threading.Thread(target=work, name="prefopt-wandb", daemon=True)
    thread.start()
    thread.join(max(seconds, 0.0))
    if raised:
        raise raised[0]
    if thread.is_alive():
        raise _TookTooLongError(f"no answer within {seconds:.0f} s")
    return box[0]


def server_answers(base_url: str, seconds: float) -> bool:
    """True when a server answers HTTP at the address, whatever it says, within the time.

    A whole request and not only a connection: the kernel accepts connections on behalf of a server that hangs. Proxies
    of the environment are used, as wandb does.
    """

    def ask() -> bool:
        try:
            with urllib.request.urlopen(f"{base_url.rstrip('/')}/healthz", timeout=seconds):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except (OSError, ValueError):  # refused, unreachable, no such host, timed out; not an address
            return False

    try:
        return _bounded(ask, seconds)
    except _TookTooLongError:
        return False


def stable_run_id(stage_dir: Path) -> str:
    """The stage's run id in wandb: made once, kept in the stage's folder, the same after every resume."""
    path = stage_dir / RUN_ID_FILE
    if path.exists():
        kept = path.read_text(encoding="utf-8").strip()
        if kept.isalnum():
            return kept
    run_id = secrets.token_hex(8)
    write_atomic(path, run_id + "\n")
    return run_id


class WandbSink:
    """One stage's run in Weights & Biases, online where that is wanted and possible, offline otherwise.

    Args:
        stage_dir: Folder of the stage; wandb writes to its `wandb/`.
        spec: Project, entity, mode and tags from the recipe. The environment's WANDB_MODE can only take away: offline
            where the recipe says online, disabled everywhere.
        identity: Group, job type and name.
        config: The stage's settings; only keys of the recipe's schema are sent.
        log: Is told each thing that went wrong, once.
        limits: How long wandb may hold up training.

    Attributes:
        mode: What it came to: `online`, `offline`, or `off` when even offline did not start.
        errors: How often wandb raised or took too long.
        directory: Where wandb keeps this run, or None.
    """

    def __init__(
        self,
        stage_dir: Path,
        spec: WandbSpec,
        identity: RunIdentity,
        config: Mapping[str, Any],
        *,
        log: Callable[[str], None],
        limits: Limits | None = None,
    ) -> None:
        self.errors = 0
        self.mode = "off"
        self.directory: Path | None = None
        self._log = log
        self._limits = limits or Limits()
        self._reported: set[str] = set()
        self._run: Any = None
        deadline = time.monotonic() + self._limits.init
        arguments = {
            "project": spec.project,
            "entity": spec.entity,
            "tags": list(spec.tags),
            "group": identity.run,
            "job_type": identity.kind,
            "name": identity.stage,
            "config": {**allowed_config(identity.kind, config), **vars(identity)},
            "dir": str(stage_dir),
            "resume": "allow",
        }
        self._guard("start", lambda: self._start(stage_dir, spec, arguments, deadline))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Sends one row. NaN is sent as NaN; a step before the last one sent is left out by wandb."""
        row = {name: float(value) for name, value in metrics.items()}
        # wandb's own counter follows the optimiser's, so that the rows of a resumed run continue and do not start at 0.
        self._guard("log", lambda: self._run.log({**row, STEP_AXIS: step}, step=step))

    def table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Sends rows as a table; nested values as text, and what costs in words (`prefopt.tracking.flagged`)."""

        def send() -> None:
            import wandb

            shown = readable(rows)
            columns = list(dict.fromkeys(column for row in shown for column in row))
            data = [[_cell(row.get(column)) for column in columns] for row in shown]
            self._run.log({name: wandb.Table(columns=columns, data=data, allow_mixed_types=True)})

        self._guard("table", send)

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Sets the final numbers of the run."""
        self._guard("summary", lambda: self._run.summary.update({k: float(v) for k, v in metrics.items()}))

    def finish(self, exit_code: int = 0) -> None:
        """Ends the run within `limits.finish`; says how to send what could not be sent. A second call does nothing."""
        run = self._run
        if run is None:
            return
        before = self.errors

        def end() -> None:
            run.finish(exit_code=exit_code)
            # Offline, `finish` returns before wandb's service has written the file; its end is what waits for that.
            _teardown(exit_code)

        self._guard("finish", lambda: _bounded(end, self._limits.finish))
        self._run = None
        if self.mode == "offline" or self.errors > before or getattr(run, "_finish_timed_out", False):
            self._log(f"wandb: to send the run later: {self.sync_command}")

    @property
    def sync_command(self) -> str:
        """The command that sends an offline or unfinished run."""
        return f"wandb sync {self.directory}"

    def _guard(self, action: str, call: Callable[[], object]) -> None:
        """The boundary: nothing that wandb raises gets past it."""
        if self._run is None and action != "start":
            return
        try:
            call()
        except Exception as error:  # wandb documents no closed set; narrow in place, not in type
            self.errors += 1
            if action not in self._reported:
                self._reported.add(action)
                self._log(redact(f"wandb: {action} failed, training goes on: {type(error).__name__}: {error}"))

    def _start(self, stage_dir: Path, spec: WandbSpec, arguments: dict[str, Any], deadline: float) -> None:
        wanted = _wanted_mode(spec)
        if wanted == "disabled":
            return
        # Otherwise wandb reports its own errors to its makers, also when offline.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        arguments["id"] = stable_run_id(stage_dir)
        if wanted == "online":
            obstacle = self._obstacle()
            if obstacle is None:
                obstacle = self._start_online(stage_dir, arguments, deadline)
            if obstacle is None:
                return
            self._log(redact(f"wandb: {obstacle}; the run is recorded offline"))
        self._open("offline", arguments, deadline)

    def _obstacle(self) -> str | None:
        """Why the run cannot be online, or None."""
        base_url, key_found = _server_and_key()
        if not key_found:
            return "no API key (WANDB_API_KEY or `wandb login`)"
        if not server_answers(base_url, self._limits.probe):
            return f"{base_url} does not answer within {self._limits.probe:g} s"
        return None

    def _start_online(self, stage_dir: Path, arguments: dict[str, Any], deadline: float) -> str | None:
        before = set(_run_folders(stage_dir))
        try:
            self._open("online", arguments, deadline - _OFFLINE_SECONDS)
        except Exception as error:  # the same boundary as _guard; the offline attempt follows
            _bounded(lambda: _teardown(1), _OFFLINE_SECONDS / 2)
            for folder in set(_run_folders(stage_dir)) - before:
                shutil.rmtree(folder, ignore_errors=True)  # holds a header only; `wandb sync` would trip over it
            return f"could not start online ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
        return None

    def _open(self, mode: str, arguments: dict[str, Any], deadline: float) -> None:
        import wandb

        seconds = max(deadline - time.monotonic(), 1.0)
        settings = _settings(mode, seconds, self._limits.finish)

        def start() -> Any:
            wandb.setup(settings=settings)
            return wandb.init(settings=settings, **arguments)

        # wandb keeps its own limit with ten seconds of grace; the thread keeps ours.
        run = _bounded(start, seconds + 0.5)
        run.define_metric(STEP_AXIS, hidden=True)
        run.define_metric("*", step_metric=STEP_AXIS)
        self.directory = Path(run.settings.sync_dir)
        self._run, self.mode = run, mode


_OFFLINE_SECONDS = 3.0  # kept back for the offline start, which takes half a second


def _wanted_mode(spec: WandbSpec) -> str:
    environment = os.environ.get("WANDB_MODE", "").lower()
    if "disabled" in (spec.mode, environment):
        return "disabled"
    return "offline" if spec.mode == "offline" or environment in ("offline", "dryrun") else "online"


def _server_and_key() -> tuple[str, bool]:
    """The server's address and whether wandb knows a key for it: environment, netrc, or its settings files."""
    import wandb
    from wandb.sdk.lib import wbauth

    settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
    base_url = str(settings.base_url)
    if settings.api_key or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return base_url, True
    return base_url, bool(wbauth.read_netrc_auth(host=wbauth.HostUrl(base_url)))


def _settings(mode: str, init_seconds: float, finish_seconds: float) -> Any:
    import wandb

    return wandb.Settings(
        mode=mode,
        silent=True,
        host="localhost",  # the name of the machine stays at home
        console="off",
        init_timeout=init_seconds,
        # Ours is the outer limit; wandb giving up first leaves a tidy service process behind.
        finish_timeout=max(finish_seconds - 5.0, finish_seconds / 2),
        reinit="create_new",
        save_code=False,
        disable_git=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_disable_viewer=True,
        x_save_requirements=False,
    )


def _teardown(exit_code: int) -> None:
    import wandb

    wandb.teardown(exit_code=exit_code)


def _run_folders(stage_dir: Path) -> list[Path]:
    return sorted((stage_dir / "wandb").glob("run-*"))


def _cell(value: object) -> object:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)
