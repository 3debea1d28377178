"""Projects with pipelines, as text: what dvc.yaml can say, some of it wrong."""

from __future__ import annotations

LOOPS = {
    "params.yaml": """
lr: 1e-5
train: {epochs: 3, layers: [10, 20], deep: {rate: 0.5, on: true, off: false, none: null, name: "a b"}}
models: [us, uk]
grid: {xgb: {depth: 2, cols: [a, b]}, nn: {depth: 3, cols: [c]}}
sizes: [1, 2.5, true, x]
one: 1
yes_: true
flag: yes
mixed:
- {n: 1, s: one}
- {n: 2, s: two}
""",
    "conf/other.yaml": "base: {seed: 7, keep: out}\nextra: 1\nunused: 2\n",
    "conf/more.toml": "[tool]\nname = 'toml'\nvalues = [1, 2]\n",
    "conf/more.json": '{"json": {"a": {"b": [1, {"c": "deep"}]}}}',
    "conf/more.py": "X = 3\nclass Conf:\n    rate = 0.25\n    names = ['p', 'q']\n",
    "sub/local.yaml": "here: there\n",
    "dvc.yaml": """
vars:
- conf/other.yaml:base
- conf/more.toml
- conf/more.json
- conf/more.py
- plain: {text: hello, num: 0.1}
stages:
  plain:
    cmd: python p.py ${lr} ${train.epochs} ${train.layers[1]} ${plain.text} \\${HOME} ${Conf.rate} ${json.a.b[1].c}
    deps: [p.py, "${base.keep}/x"]
    params: [lr, train.epochs, "conf/other.yaml": [base.seed]]
    outs:
    - ${plain.text}.txt:
        cache: false
        desc: "made with ${lr}"
    metrics: [m.json: {cache: false}]
  dict:
    cmd: python d.py ${train.deep} --after
    outs: [dict.out]
  many:
    foreach: ${models}
    do:
      cmd: python m.py ${item}
      outs: ["models/${item}"]
  keyed:
    foreach: ${grid}
    do:
      cmd: python k.py ${key} ${item.depth} ${item}
      deps: ["models/us"]
      outs: ["keyed/${key}"]
  numbers:
    foreach: ${sizes}
    do:
      cmd: echo ${item}
      outs: ["n-${item}"]
  listed:
    foreach: ${mixed}
    do:
      cmd: echo ${item.n} ${item.s}
      outs: ["l-${item.s}"]
  inline:
    foreach: [1, two, "3.0", false, "${yes_}"]
    do:
      wdir: sub
      vars:
      - local.yaml
      - mine: {v: "own"}
      cmd: echo ${item} ${here} ${mine.v}
      outs: ["i-${item}"]
  cross:
    matrix:
      model: ${models}
      feature: [a, {deep: 1}, 2]
    cmd: echo ${item.model} ${key}
    params: [train]
    outs: ["cross/${key}"]
    frozen: true
  block:
    cmd:
    - echo one ${lr}
    - echo two
    always_changed: true
    plots: [plot.csv: {x: a, cache: false}]
metrics: ["${plain.text}.json"]
""",
}

SEVERAL = {
    "params.yaml": "a: 1\n",
    "dvc.yaml": "stages:\n  top:\n    cmd: echo\n    deps: [one/out, data]\n    outs: [top.out]\n",
    "data.dvc": "outs:\n- md5: d3b07384d113edec49eaa6238ad5ff00\n  size: 4\n  hash: md5\n  path: data\n",
    "one/params.yaml": "a: 2\n",
    "one/dvc.yaml": "stages:\n  top:\n    wdir: ..\n    cmd: echo ${a}\n    deps: [two]\n    outs: [one/out]\n"
    "  idle:\n    cmd: echo\n",
    "two/dvc.yaml": "stages:\n  deep:\n    cmd: echo\n    deps: [../data]\n    outs: [x, y/z]\n    params: [../params.yaml:, a]\n"
    "  after:\n    cmd: echo\n    deps: [y]\n",
    "two/params.yaml": "a: 3\n",
}

# What DVC refuses: a dvc.yaml, the line where it is wrong, and words of our sentence.
REFUSED: dict[str, tuple[str, int, str]] = {
    "unknown key": ("stages:\n  a:\n    cmd: x\n    oops: 1\n", 4, "unknown key 'oops'"),
    "no command": ("stages:\n  a:\n    deps: [b]\n", 2, "has no 'cmd'"),
    "wrong type": ("stages:\n  a:\n    cmd: x\n    deps: b\n", 4, "expected a list"),
    "wrong flag": ("stages:\n  a:\n    cmd: x\n    frozen: maybe\n", 4, "expected true or false"),
    "wrong option": ("stages:\n  a:\n    cmd: x\n    outs:\n    - b: {cash: true}\n", 5, "unknown key 'cash'"),
    "top level": ("stagez:\n  a:\n    cmd: x\n", 1, "unknown key 'stagez'"),
    "no stage": ("stages:\n  a:\n", 2, "is empty"),
    "do without foreach": ("stages:\n  a:\n    do: {cmd: x}\n", 2, "has no 'foreach'"),
    "foreach beside cmd": ("stages:\n  a:\n    foreach: [1]\n    cmd: x\n", 4, "unknown key 'cmd'"),
    "twice": ("stages:\n  a:\n    cmd: x\n  a:\n    cmd: y\n", 4, "duplicate"),
    "not yaml": ("stages: [\n", 2, ""),
    "missing name": ("stages:\n  a:\n    cmd: echo ${nope.x}\n", 3, "there is no 'nope.x'"),
    "bad expression": ("stages:\n  a:\n    cmd: echo ${a[}\n", 3, "cannot be read"),
    "list in text": ("vars: [{l: [1]}]\nstages:\n  a:\n    cmd: echo ${l}\n", 4, "is a list"),
    "dict in outs": ("vars: [{d: {x: 1}}]\nstages:\n  a:\n    cmd: x\n    outs: ['${d}']\n", 5, "is a mapping"),
    "template in vars": ("vars: [{d: '${x}'}]\n", 1, "cannot hold templates"),
    "no vars file": ("vars: [nope.yaml]\n", 1, "does not exist"),
    "vars again": ("vars:\n- params.yaml:a\n", 1, "loaded already"),
    "redefined": ("vars:\n- a: 2\n", 1, "in 'params.yaml' already"),
    "foreach scalar": ("stages:\n  a:\n    foreach: ${a}\n    do: {cmd: x}\n", 3, "expected a list or a mapping"),
    "item set": ("stages:\n  a:\n    foreach: [1]\n    do: {cmd: x, vars: [{item: 2}]}\n", 4, "loop"),
}
