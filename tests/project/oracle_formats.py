"""Run by tests in a process of its own: what real DVC makes of projects, configs and text samples. JSON in, JSON out."""

from __future__ import annotations

import base64
import json
import os
import sys
from typing import Any


def outputs(root: str) -> list[list[Any]] | None:
    """[path, algorithm, value, uses cache] of each output, None when DVC cannot load the project."""
    from dvc.repo import Repo

    try:
        repo = Repo(root)
        found = []
        for out in repo.index.outs:
            if out.protocol != "local" or not out.is_in_repo:
                continue
            info = out.hash_info
            path = os.path.relpath(out.fs_path, root)
            found.append([path, info.name if info else None, info.value if info else None, bool(out.use_cache)])
        return found
    except Exception:
        return None


def config(text: str, folder: str) -> dict[str, Any] | None:
    """The settings of one project config, None when DVC refuses it."""
    from dvc.config import Config

    with open(os.path.join(folder, "config"), "w") as file:
        file.write(text)
    try:
        found = Config(folder)
        return {"core": dict(found["core"]), "remotes": sorted(found["remote"])}
    except Exception:
        return None


def main() -> None:
    request = json.load(sys.stdin)
    from dvc_data.hashfile.istextfile import istextblock

    samples = [base64.b64decode(text) for text in request.get("samples", [])]
    json.dump(
        {
            "outputs": {root: outputs(root) for root in request.get("roots", [])},
            "configs": [config(text, request["folder"]) for text in request.get("configs", [])],
            "texts": [istextblock(sample) for sample in samples],
        },
        sys.stdout,
        default=str,
    )


main()
