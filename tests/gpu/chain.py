"""Run the whole chain on a CUDA device: bf16, activation checkpointing, grpo and rloo, and a 4-bit base (QLoRA).

usage: python tests/gpu/chain.py [OUT_DIR]

Prints one JSON document with the hardware, the versions, the date, and each variant's times, peak memory and final
table; writes the same to OUT_DIR/gpu.json. Ends with exit code 3 where there is no CUDA device, and with 1 when a
variant fails, the policy of its stage dpo or ppo does not beat its sft policy, or an export does not give the stage's
logits.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
VARIANTS: dict[str, list[str]] = {
    "bf16": ["model.dtype=bfloat16"],
    "bf16, activation checkpointing": [
        "model.dtype=bfloat16",
        "stages.sft.activation_checkpointing=true",
        "stages.reward.activation_checkpointing=true",
        "stages.dpo.activation_checkpointing=true",
        "stages.ppo.activation_checkpointing=true",
    ],
    "bf16, grpo in the place of ppo": ["model.dtype=bfloat16", "stages.ppo.kind=grpo"],
    "bf16, rloo in the place of ppo": ["model.dtype=bfloat16", "stages.ppo.kind=rloo"],
    "4-bit base": ["model.dtype=bfloat16", "model.load_in_4bit=true"],
}


def hardware() -> dict[str, object]:
    properties = torch.cuda.get_device_properties(0)
    libraries = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")
    return {
        "device": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in libraries if importlib.util.find_spec(name)},
    }


def run(name: str, overrides: list[str], out: Path) -> dict[str, object]:
    command = [sys.executable, "-m", "prefopt", "run", str(RECIPE), "--out", str(out / name.replace(" ", "_"))]
    for override in overrides:
        command += ["--set", override]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"failed": done.returncode, "stderr": done.stderr.splitlines()[-5:], "stdout": done.stdout[-2000:]}
    stages: dict[str, object] = {}
    metrics: dict[str, float] = {}
    for manifest in sorted((out / name.replace(" ", "_") / "stages").glob("*/*/manifest.json")):
        content = json.loads(manifest.read_text(encoding="utf-8"))
        stages[content["stage"]] = content["cost"]
        metrics.update({k: v for k, v in content["metrics"].items() if content["kind"] == "evaluate"})
    exports = exported(out / name.replace(" ", "_"))
    better = all(metrics[f"{policy}:gold/ci_low"] > metrics["sft:gold/mean"] for policy in ("dpo", "ppo"))
    whole = all(isinstance(gap, float) for gap in exports.values())
    return {"cost": stages, "metrics": metrics, "exports": exports, "passed": better and whole}


def exported(run: Path) -> dict[str, object]:
    """The largest difference of a logit between stage and export, or what went wrong; merged and not.

    On a 4-bit base a merge is into the dequantised weights; `prefopt export` itself refuses what computes otherwise.
    """
    found: dict[str, object] = {}
    for stage in ("dpo", "reward"):
        for flags in ([], ["--merge"]):
            command = [sys.executable, "-m", "prefopt", "export", str(run), "--stage", stage, *flags, "--json"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            gap = json.loads(done.stdout)["largest_gap"] if done.returncode == 0 else done.stderr.splitlines()[-5:]
            found[" ".join([stage, *flags])] = float(gap) if done.returncode == 0 else gap
    return found


def main() -> int:
    if not torch.cuda.is_available():
        print("no CUDA device here: this script is for a machine that has one", file=sys.stderr)
        return 3
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/gpu")
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, object] = {"hardware": hardware()}
    failed = False
    for name, overrides in VARIANTS.items():
        if "model.load_in_4bit=true" in overrides and importlib.util.find_spec("bitsandbytes") is None:
            results[name] = "not run: bitsandbytes is not installed (pip install 'prefopt[bitsandbytes]')"
            failed = True
            continue
        result = run(name, overrides, out)
        failed = failed or not result.get("passed", False)
        results[name] = result
    text = json.dumps(results, indent=2)
    (out / "gpu.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
