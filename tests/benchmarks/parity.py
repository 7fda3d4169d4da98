"""Every loss of TRL's DPOTrainer, trained by prefopt and by TRL: the table of docs/algorithms/dpo.md, as Markdown.

usage: PREFOPT_DATA=… PREFOPT_MODELS=… python tests/benchmarks/parity.py [LOSS …]

30 steps of 4 pairs of hh-rlhf in float32 on a model of 260 thousand parameters, a LoRA adapter with the same start, the
same order, no dropout. About half a minute a row.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.trl_parity import train_both  # noqa: E402 - the package beside this script

SMOOTH = {"label_smoothing": 0.1}
ROWS: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "hinge": {},
    "ipo": {},
    "exo_pair": SMOOTH,
    "nca_pair": {},
    "robust": SMOOTH,
    "bco_pair": {},
    "sppo_hard": {},
    "aot": SMOOTH,
    "aot_unpaired": SMOOTH,
    "apo_zero": {},
    "apo_down": {},
    "discopop": {"discopop_tau": 1.0},
    "sft": {},
    "sigmoid_norm": {"beta": 2.0},
    "sigmoid, ld_alpha 0.5": {"ld_alpha": 0.5},
    "sigmoid, forward_kl": {"f_divergence_type": "forward_kl"},
    "sigmoid, js_divergence": {"f_divergence_type": "js_divergence", "beta": 1.0},
    "sigmoid, alpha_divergence": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
    "sigmoid, use_weighting": {"use_weighting": True},
    "sigmoid + bco_pair + sft": {"loss_weights": [0.8, 0.2, 1.0]},
}
RATES = {
    "sigmoid_norm": 5e-4,
    "sigmoid, use_weighting": 1e-3,
    "apo_down": 2e-4,
    "exo_pair": 2e-4,
    "robust": 2e-4,
    "sigmoid, forward_kl": 2e-5,
}


def main() -> int:
    data, models = Path(os.environ["PREFOPT_DATA"]), Path(os.environ["PREFOPT_MODELS"])
    print("| loss | learning rate | first loss | last loss | loss fell by | largest relative difference in 30 steps |")
    print("|---|---|---|---|---|---|")
    for name in sys.argv[1:] or ROWS:
        options = {"beta": 0.1, "loss_type": name.split(",")[0].split(" + "), **ROWS[name]}
        rate = RATES.get(name, 1e-4)
        with tempfile.TemporaryDirectory() as folder:
            curves = train_both(data, models / "stories260k-hf", Path(folder), options, rate)
        ends = f"{curves.theirs[0]:.4g} | {curves.theirs[-1]:.4g} | {curves.fall:.2g}"
        print(f"| {name} | {rate:g} | {ends} | {curves.gap:.1e} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
