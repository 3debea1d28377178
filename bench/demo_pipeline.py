"""The demo's pipeline: prepare, train, evaluate on the digits, as a project would have them."""

from __future__ import annotations

import json
from pathlib import Path

PARAMS = """prepare:
  test_every: 5
train:
  c: 0.001
"""
STAGES = """stages:
  prepare:
    cmd: python prepare.py
    deps:
    - prepare.py
    - data
    params:
    - prepare.test_every
    outs:
    - prepared.npz
  train:
    cmd: python train.py
    deps:
    - train.py
    - prepared.npz
    params:
    - train.c
    outs:
    - model.npz
  evaluate:
    cmd: python evaluate.py
    deps:
    - evaluate.py
    - prepared.npz
    - model.npz
    metrics:
    - metrics.json:
        cache: false
    plots:
    - classes.csv:
        template: confusion
        x: actual
        y: predicted
        cache: false
"""
PREPARE = '''"""Images to one table."""
from pathlib import Path

import numpy as np
import yaml

every = yaml.safe_load(Path("params.yaml").read_text())["prepare"]["test_every"]
files = sorted(Path("data/images").glob("*/*.pgm"), key=lambda path: path.name)
pixels = np.array([np.frombuffer(path.read_bytes()[-64:], np.uint8) for path in files]) / 16
labels = np.array([int(path.parent.name) for path in files])
test = np.array([int(path.stem) % every == 0 for path in files])
np.savez("prepared.npz", pixels=pixels, labels=labels, test=test)
print(f"{len(files)} images, {test.sum()} of them held out")
'''
TRAIN = '''"""A linear model."""
from pathlib import Path

import numpy as np
import yaml
from sklearn.linear_model import LogisticRegression

c = yaml.safe_load(Path("params.yaml").read_text())["train"]["c"]
data = np.load("prepared.npz")
fitted = LogisticRegression(C=c, max_iter=2000).fit(data["pixels"][~data["test"]], data["labels"][~data["test"]])
np.savez("model.npz", weights=fitted.coef_, bias=fitted.intercept_)
print(f"trained with C={c}")
'''
EVALUATE = '''"""What the model makes of the images that were held out."""
import csv
import json

import numpy as np

data, model = np.load("prepared.npz"), np.load("model.npz")
found = (data["pixels"][data["test"]] @ model["weights"].T + model["bias"]).argmax(axis=1)
actual = data["labels"][data["test"]]
with open("metrics.json", "w") as file:
    json.dump({"accuracy": round(float((found == actual).mean()), 5), "images": len(actual)}, file)
with open("classes.csv", "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["actual", "predicted"])
    rows.writerows(zip(actual.tolist(), found.tolist()))
'''


def write(folder: Path) -> None:
    """Write the pipeline's files."""
    texts = {
        "dvc.yaml": STAGES,
        "params.yaml": PARAMS,
        "prepare.py": PREPARE,
        "train.py": TRAIN,
        "evaluate.py": EVALUATE,
    }
    for name, text in texts.items():
        (folder / name).write_text(text)


def loosen(folder: Path) -> None:
    """Change the one parameter that training has."""
    path = folder / "params.yaml"
    path.write_text(path.read_text().replace("c: 0.001", "c: 0.1"))


def accuracy(folder: Path) -> float:
    """What the last evaluation came to."""
    return float(json.loads((folder / "metrics.json").read_text())["accuracy"])
