"""Both teams of a comparison over seeds as programs that take a moment, and the comparison as a process to be killed.

``train``, ``export`` (ours) and a call with ``--init`` (the PyTorch team) do what the real programs do with files:
they read the experiment and write a submission, whose skill is a function of seed and start. The environment variable
SEEDS_LAB_WAIT makes a training wait, SEEDS_LAB_FAIL=TEAM makes one fail (with SEEDS_LAB_CODE).
"""

import csv
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


def _option(name):
    return Path(sys.argv[sys.argv.index(name) + 1])


def _submit(team, experiment, data, out, start):
    if os.environ.get("SEEDS_LAB_FAIL") == team:
        print("The disk of this training is full.", file=sys.stderr, flush=True)
        code = int(os.environ.get("SEEDS_LAB_CODE", 2))
        if code < 0:
            os.kill(os.getpid(), -code)
        sys.exit(code)
    print(f"epoch 1 of {team}", flush=True)
    if wait := float(os.environ.get("SEEDS_LAB_WAIT", 0)):
        time.sleep(wait)
    rows = list(csv.DictReader((data / "split.csv").open()))
    seed = int.from_bytes(hashlib.sha256(start + bytes([experiment["seed"]])).digest()[:4], "big")
    rng = np.random.default_rng(seed)
    folder = out / "submission"
    folder.mkdir(parents=True)
    with (folder / "predictions.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "probability"])
        for row in rows:
            if row["subset"] == "test":
                value = 0.4 + 0.2 * int(row["pneumothorax"]) + 0.15 * rng.normal()
                writer.writerow([row["image_id"], min(max(value, 0), 1)])
    manifest = json.loads((data / "manifest.json").read_text())
    info = {"team": team, "task": "classification", "framework": team, "split_sha256": manifest["split_sha256"]}
    (folder / "submission.json").write_text(json.dumps(info | {"threshold": 0.5, "training_hours": 0.5}))


def _main():
    if sys.argv[1] == "compare":
        from keras_pneumo.config import read_experiment
        from keras_pneumo.data.prepared.folder import load_prepared
        from keras_pneumo.parity.seeds.study import Study, compare_frameworks

        study = Study(read_experiment(_option("--experiment")), load_prepared(_option("--data")), _option("--out"), 2)
        me = Path(__file__)
        compare_frameworks(study, Path(sys.executable), me, [sys.executable, str(me)], None)
        return
    if sys.argv[1] == "export":
        save_file({"conv1.weight": np.linspace(-1, 1, 12, dtype=np.float32)}, _option("--out"))
        return
    out, data = _option("--out"), _option("--data")
    if sys.argv[1] == "train":
        signal.signal(signal.SIGTERM, lambda *_: (print("SIGTERM came", flush=True), sys.exit(75)))
        experiment = json.loads(Path(sys.argv[2]).read_text())
        _submit("keras", experiment, data, out, b"ours")
        (out / "report.html").write_text("done")
    else:
        experiment = json.loads(_option("--experiment").read_text())
        start = load_file(_option("--init"))["conv1.weight"].tobytes()
        _submit(out.name, experiment, data, out, start)


if __name__ == "__main__":
    _main()
