"""Sets up the warm process that stage processes are forked from. Importing it has effects; only that process does.

It is the first module that multiprocessing's fork server imports, before any library.
"""

from __future__ import annotations

import os
import signal

from prefopt.pipeline.loading import SERVER_LOG, fix_environment

# Ctrl-C and a service manager's stop go to every process of the group, and only the runner acts on them. Were the
# server to die, the runner would lose sight of a stage that is still saving its checkpoint.
for _signal in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(_signal, signal.SIG_IGN)

# What libraries say while they are imported is no result of the command, and no progress either.
if _log := os.environ.pop(SERVER_LOG, ""):
    _descriptor = os.open(_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(_descriptor, 1)
    os.dup2(_descriptor, 2)
    os.close(_descriptor)

fix_environment(os.environ)
