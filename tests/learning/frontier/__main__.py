"""Train and measure what the frontier of reward against KL shows, and write it into docs/benchmarks.md.

usage: python -m tests.learning.frontier [--results docs/measured/frontier.jsonl] [--folder bench/frontier]
       [--workers 2] [--budget N …] [--method NAME …] [--dry-run | --no-page | --page]

Every run is a few processes of one thread each; what is finished is in RESULTS and is not trained again. The page says
what methods show whose runs are all finished, and leaves out the others. The peers' side is in the folder that
PREFOPT_BENCH names.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.benchmarks.against_trl.peers import ROOT
from tests.learning.frontier import page, plan
from tests.learning.frontier.runs import Results, reported, tried
from tests.learning.results import MEASURED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=MEASURED / "frontier.jsonl")
    parser.add_argument("--folder", type=Path, default=ROOT / "bench" / "frontier")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--budget", type=int, nargs="+", default=list(plan.BUDGETS), choices=plan.BUDGETS)
    parser.add_argument("--method", nargs="+", default=list(plan.METHODS), choices=list(plan.METHODS))
    told = parser.add_mutually_exclusive_group()
    told.add_argument("--dry-run", action="store_true", help="print what is missing of the first seed")
    told.add_argument("--no-page", action="store_true", help="leave docs/benchmarks.md as it is")
    told.add_argument("--page", action="store_true", help="write the page from what is finished, and train nothing")
    a = parser.parse_args()
    results = Results(a.results, a.folder.absolute(), a.workers)
    first = tried(a.budget, a.method)
    if a.dry_run:
        print("\n".join(run.key for run in first if run.key not in results.rows))
        return 0
    if not a.page:
        results.estimate_limit()
        results.complete(first)
        results.complete(reported(results, a.budget, a.method))
    if not a.no_page:
        page.write(results, ROOT / "docs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
