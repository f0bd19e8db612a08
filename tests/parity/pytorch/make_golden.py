"""Write tests/parity/pytorch/golden from PyTorch: ``<PyTorch's python> tests/parity/pytorch/make_golden.py``."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent

SCHEDULES = [
    {"kind": "OneCycleLR", "steps": 50, "arguments": {"max_lr": 0.01, "total_steps": 50}},
    {"kind": "OneCycleLR", "steps": 7, "arguments": {"max_lr": 1.0, "total_steps": 7}},
    {
        "kind": "OneCycleLR",
        "steps": 41,
        "arguments": {
            "max_lr": 3e-4,
            "total_steps": 41,
            "pct_start": 0.25,
            "div_factor": 10.0,
            "final_div_factor": 100.0,
            "base_momentum": 0.8,
            "max_momentum": 0.9,
        },
    },
    {"kind": "OneCycleLR", "steps": 60, "arguments": {"max_lr": 0.02, "total_steps": 60, "three_phase": True}},
    {"kind": "CosineAnnealingLR", "steps": 31, "rate": 0.1, "arguments": {"T_max": 20}},
    {"kind": "CosineAnnealingLR", "steps": 9, "rate": 1e-4, "arguments": {"T_max": 8, "eta_min": 1e-6}},
    {"kind": "CosineAnnealingWarmRestarts", "steps": 40, "rate": 5e-4, "arguments": {"T_0": 5, "T_mult": 2}},
    {"kind": "CosineAnnealingWarmRestarts", "steps": 12, "rate": 5e-4, "arguments": {"T_0": 4, "eta_min": 1e-5}},
]

FIGURES = [1.0, 0.9, 0.89999, 0.91, 0.9, 0.95, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]
PLATEAUS = [
    {"arguments": {"factor": 0.1, "patience": 2}, "figures": FIGURES},
    {"arguments": {"factor": 0.5, "patience": 1, "cooldown": 2, "min_lr": 0.02}, "figures": FIGURES},
    {"arguments": {"mode": "max", "factor": 0.5, "patience": 1}, "figures": FIGURES},
    {"arguments": {"patience": 0, "threshold": 0.05, "threshold_mode": "abs"}, "figures": FIGURES},
    {"arguments": {"mode": "max", "patience": 0, "threshold": 0.05, "threshold_mode": "abs"}, "figures": FIGURES},
    {"arguments": {"mode": "max", "patience": 0, "threshold": 0.1}, "figures": [-1.0, -1.05, -0.95, -0.8, -0.7]},
    {"arguments": {"factor": 0.1, "patience": 0, "eps": 1e-3}, "figures": [1.0, 1.0, 1.0, 1.0, 1.0]},
]

OPTIMIZERS = [
    {"kind": "AdamW", "rate": 1e-2, "decay": 0.1, "one_cycle": False, "arguments": {}},
    {"kind": "AdamW", "rate": 1e-1, "decay": 0.01, "one_cycle": True, "arguments": {}, "bias_multiple": 0.25},
    {"kind": "AdamW", "rate": 1e-2, "decay": 0.0, "one_cycle": False, "arguments": {"eps": 1e-2}, "clip": 0.1},
    {"kind": "SGD", "rate": 1e-1, "decay": 0.0, "one_cycle": False, "arguments": {"momentum": 0.9}},
    {"kind": "SGD", "rate": 1e-1, "decay": 0.05, "one_cycle": True, "arguments": {"momentum": 0.9}},
    {"kind": "SGD", "rate": 1e-1, "decay": 0.05, "one_cycle": False, "arguments": {"momentum": 0.9, "nesterov": True}},
    {"kind": "SGD", "rate": 1e-1, "decay": 0.0, "one_cycle": False, "arguments": {"momentum": 0.0}, "clip": 1.0},
]


def optimizer_inputs(steps=12):
    """Two variables and a gradient for each of them at each step; some gradients tiny, where epsilon matters."""
    rng = np.random.default_rng(0)
    size = 10.0 ** rng.integers(-7, 1, (steps, 1, 1))
    return {
        "kernel": rng.normal(size=(3, 2)).astype(np.float32),
        "bias": rng.normal(size=2).astype(np.float32),
        "kernel_gradients": (size * rng.normal(size=(steps, 3, 2))).astype(np.float32),
        "bias_gradients": (size[:, 0] * rng.normal(size=(steps, 2))).astype(np.float32),
    }


def plans():
    """Every schedule, plateaus in the same form."""
    plateaus = [{"kind": "ReduceLROnPlateau", "rate": 0.1, "steps": len(p["figures"]), **p} for p in PLATEAUS]
    return SCHEDULES + plateaus


def main():
    """Run the reference tasks and keep their answers as JSON."""
    script = HERE / "torch_reference.py"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "task.json").write_text(json.dumps({"plans": plans()}))
        subprocess.run([sys.executable, script, "schedules", folder], check=True)
        answers = json.loads((folder / "out.json").read_text())
        (HERE / "golden" / "schedules.json").write_text(json.dumps(answers, indent=1) + "\n")
        (folder / "task.json").write_text(json.dumps({"plans": OPTIMIZERS}))
        np.savez(folder / "in.npz", **optimizer_inputs())
        subprocess.run([sys.executable, script, "optimizers", folder], check=True)
        answers = {name: array.tolist() for name, array in np.load(folder / "out.npz").items()}
        (HERE / "golden" / "optimizers.json").write_text(json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()
