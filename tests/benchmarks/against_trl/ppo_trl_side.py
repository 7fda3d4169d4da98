"""Runs the peers' script that times TRL's last PPO as it is, and prints a second JSON line: its memory.

usage: PYTHONPATH=FOLDER_WITH_TRL_1.12 python -m tests.benchmarks.against_trl.ppo_trl_side DIR [what the script takes]
"""

from __future__ import annotations

import json
import sys

from tests.benchmarks.against_trl.peers import peer_script
from tests.benchmarks.against_trl.process_memory import PeakMemory

PEER = "peer_trl_ppo.py"


def main() -> None:
    module = peer_script(PEER)
    memory = PeakMemory()
    sys.argv = [PEER, *sys.argv[1:]]
    module.main()
    print(json.dumps(memory.report()))


if __name__ == "__main__":
    main()
