"""Runs the command lines that stdin brings, one JSON object a line, and answers each with its exit code."""

import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout

from prefopt.cli.app import run_command

for request in map(json.loads, sys.stdin):
    before = dict(os.environ)
    os.environ.update(request["variables"])
    with open(request["outputs"][0], "w") as out, open(request["outputs"][1], "w") as err:
        with redirect_stdout(out), redirect_stderr(err):
            code = run_command(request["line"])
    os.environ.clear()
    os.environ.update(before)
    print(code, flush=True)
