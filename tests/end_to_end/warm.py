"""Runs the command lines that stdin brings, one JSON object a line, each in a process of its own, and answers the code.

Those processes share this one's server of stage processes, and what it has imported. A command that is a program has a
server of its own, and spends most of a short run on importing libraries there.
"""

import importlib
import json
import os
import sys
from multiprocessing import forkserver
from pathlib import Path

from prefopt.cli.app import run_command
from prefopt.pipeline.process import start_server
from prefopt.pipeline.stages import PRELOAD, Registry


def use_the_server_of_the_parent() -> None:
    # What multiprocessing does first is to ask after the server, which only its parent can.
    forkserver.ensure_running = forkserver._forkserver.ensure_running = lambda: None


def run(line: list[str], outputs: list[str], variables: dict[str, str]) -> int:
    for descriptor, name in enumerate([os.devnull, *outputs]):
        opened = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.update(variables)
    use_the_server_of_the_parent()
    code = run_command(line)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


start_server(("tests.end_to_end.warm_server", *Registry().preload), Path(sys.argv[1]))
for request in map(json.loads, iter(sys.stdin.readline, "")):
    if request["line"][0] in ("sample", "export"):  # does its work itself
        importlib.import_module(PRELOAD)
    process = os.fork()
    if process == 0:
        os._exit(run(**request))
    _, status = os.waitpid(process, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
