"""A project with metrics, parameters and plots of every kind, and its commands beside real DVC's."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

from tests.cli.helpers import Home

STAGES = """\
vars:
- used.yaml
stages:
  train:
    cmd: echo ${x.y}
    params:
    - lr
    - other.yaml:
      - k.a
    - whole.json:
    outs:
    - model.txt
    metrics:
    - m.json:
        cache: false
    - cached.json
    plots:
    - logs.csv:
        x: epoch
        y: loss
        title: Loss
        cache: false
    - cm.csv:
        template: confusion
        x: actual
        y: predicted
        cache: false
    - plots_dir
    - img.png:
        cache: false
params:
- top.toml
metrics:
- sub/n.yaml
- gone.json
plots:
- logs.csv:
    x: epoch
    y: [loss, acc]
- both:
    x: epoch
    y: {logs.csv: acc, more.json: acc}
    template: linear
    y_label: both
- two:
    y: {logs.csv: [loss, acc], more.json: acc}
- unlike:
    x: {logs.csv: epoch}
    y: {logs.csv: loss, more.json: acc}
- named:
    x: {logs.csv: epoch, more.json: epoch}
    y: {logs.csv: [loss], more.json: [acc]}
    title: T
    x_label: X
    y_label: Y
- crossed:
    x: {more.json: epoch, other.json: acc}
    y: {more.json: acc, other.json: epoch}
- elsewhere:
    x: {more.json: epoch}
    y: {same.json: [q, r]}
- nested:
    x: a.b
    y: {nest.json: v}
- nest.json
- nofield:
    x: epoch
    y: {logs.csv: zzz}
- nofile:
    x: epoch
    y: {nofile.csv: zzz}
- bad.json
- dots.json:
    x: s
    y: a.b
- many:
    x: v
    y: {many.json: w}
- some:
    x: epoch
    y: {logs.csv: [], more.json: acc}
- scattered:
    template: scatter
    y: {more.json: acc}
"""
FILES = {
    "used.yaml": "x: {y: 5, z: 6}\n",
    "params.yaml": "lr: 1\nzz: 2\nlayers: [1, 2]\n",
    "other.yaml": "k: {a: 1, b: 2}\nq: 3\n",
    "whole.json": '{"w": {"e": 1.5}, "l": [1, 2], "n": null}\n',
    "top.toml": 'tt = 1\n[s]\nu = "x"\n',
    "extra.py": "ex = 1\n",
    "model.txt": "model\n",
    "m.json": '{"a": 1}\n',
    "cached.json": '{"c": 0.25}\n',
    "sub/n.yaml": "z: 1.23456789\nb: {c: 12345678.9, d: [1, 2], e: text, f: true, g: null}\n",
    "logs.csv": "epoch,loss,acc\n0,1.0,0.5\n1,0.5,0.7\n2,0.25,0.8\n",
    "cm.csv": "actual,predicted\ncat,dog\ncat,cat\ndog,dog\n",
    "plots_dir/nested.json": '{"t": [{"step": 0, "v": 1}, {"step": 1, "v": 3}]}\n',
    "plots_dir/x.tsv": "a\tb\n1\t2\n3\t4\n",
    "more.json": '[{"epoch": 0, "acc": 0.4}, {"epoch": 1, "acc": 0.6}]\n',
    "other.json": '[{"epoch": 0, "acc": 0.4}, {"epoch": 1, "acc": 0.6}, {"epoch": 2, "acc": 0.7}]\n',
    "same.json": '[{"q": 1, "r": 5}, {"q": 2, "r": 6}]\n',
    "nest.json": '{"train": {"x": [{"v": 1, "a": {"b": 2}}, {"v": 2, "a": {"b": 3}}], "o": [{"w": 5}]}, "k": 3}\n',
    "many.json": '{"t": [{"v": 1, "s": 2}, {"v": 2, "s": 3}], "o": {"z": [{"w": 5, "s": 8}, {"w": 6, "s": 1}]}, "n": [1]}\n',
    "dots.json": '{"q": [{"s": 1, "a.b": 2, "a": {"b": 7}}, {"s": 2, "a.b": 4, "a": {"b": 9}}]}\n',
    "noheader.csv": "1,2,3\n4,5,6\n",
    "bad.json": "[1,2\n",
    "deep/dvc.yaml": "plots:\n- own.csv:\n    x: epoch\n- two:\n    x: epoch\n    y: {own.csv: loss, ../more.json: acc}\n",
    "deep/own.csv": "epoch,loss\n0,3\n1,2\n",
}
CHANGED = {
    "params.yaml": "lr: 0.5\nzz: 2\nlayers: [1, 2, 3]\nnew: {a: 1}\n",
    "other.yaml": "k: {a: 7, b: 9}\nq: 4\n",
    "whole.json": '{"w": {"e": 2.5}, "l": [1, 3], "n": null}\n',
    "top.toml": 'tt = 1\n[s]\nu = "y"\n',
    "used.yaml": "x: {y: 6, z: 8}\n",
    "extra.py": "ex = 2\n",
    "m.json": '{"a": 2, "added": 1e-7}\n',
    "sub/n.yaml": "z: 2.5\nb: {c: 1.0e-7, d: [1], e: other, f: false}\n",
    "logs.csv": "epoch,loss,acc\n0,1.0,0.5\n1,0.5,0.7\n2,0.2,0.8\n",
}


def png() -> bytes:
    """One red point."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + chunk(b"IEND", b"")


def make(home: Home) -> None:
    """Three commits, `v1`, `v2` and `again` (on the second, too), and a workspace that differs from them."""
    home.git("init", "-q", "-b", "main")
    home.dvc("init", "-q")
    write(home, {"dvc.yaml": STAGES, **FILES})
    (home.repo / "img.png").write_bytes(png())
    home.dvc("commit", "-q", "-f")
    home.git("add", "-A")
    home.git("commit", "-qm", "first")
    home.git("tag", "v1")
    write(
        home,
        {"m.json": '{"a": 3}\n', "logs.csv": FILES["logs.csv"].replace("0.25", "0.3"), "cached.json": '{"c": 1}\n'},
    )
    home.dvc("commit", "-q", "-f")
    home.git("add", "-A")
    home.git("commit", "-qm", "second")
    home.git("tag", "v2")
    home.git("tag", "again")
    write(home, CHANGED)


def write(home: Home, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = home.repo / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def as_data(text: str) -> Any:
    return json.loads(text) if text.strip() else {}
