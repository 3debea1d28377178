"""`make demo`: the main job on a real data set, in a directory of its own that is removed at the end.

scikit-learn's handwritten digits (1,797 images of 8 x 8) are written out as image files by class, with their CSV, and
kept in two versions; both are mounted at once, a model is trained by reading through each mount, and the store is
checked. Every line that begins with `$` is a command that was run.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

FIRST_VERSION = 1400
TEST_EVERY = 5


class Shell:
    """Runs and prints commands in one folder, with an environment of the demo's own."""

    def __init__(self, home: Path) -> None:
        self.cwd = home / "digits"
        self.cwd.mkdir()
        self.env = os.environ | {
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_RUNTIME_DIR": str(home / "run"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "GIT_AUTHOR_NAME": "demo",
            "GIT_AUTHOR_EMAIL": "demo@example.org",
            "GIT_COMMITTER_NAME": "demo",
            "GIT_COMMITTER_EMAIL": "demo@example.org",
        }
        (home / "run").mkdir(mode=0o700)

    def run(self, *command: str, quiet: bool = False) -> None:
        """Run a command, print it and what it says; a failure ends the demo."""
        print(f"\n$ {' '.join(command)}", flush=True)
        stdout = subprocess.DEVNULL if quiet else None
        subprocess.run(command, cwd=self.cwd, env=self.env, check=True, stdout=stdout)


def write_digits(folder: Path, count: int) -> None:
    """Write the first `count` digits as `<class>/<number>.pgm` (portable graymap, 16 levels), and `digits.csv`."""
    digits = load_digits()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "digits.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label", *(f"p{i}" for i in range(64))])
        for number in range(count):
            label, image = int(digits.target[number]), digits.images[number].astype(np.uint8)
            path = folder / str(label) / f"{number:04d}.pgm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"P5 8 8 16\n" + image.tobytes())
            rows.writerow([path.relative_to(folder), label, *image.ravel()])


def read_digits(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, labels and numbers of the images below a folder."""
    files = sorted(folder.glob("*/*.pgm"), key=lambda path: path.name)
    pixels = np.array([np.frombuffer(path.read_bytes()[-64:], np.uint8) for path in files])
    return pixels, np.array([int(path.parent.name) for path in files]), np.array([int(path.stem) for path in files])


def train(folder: Path) -> str:
    """Train on what a mounted version holds; one line of result."""
    began = time.monotonic()
    pixels, labels, numbers = read_digits(folder)
    read_s = time.monotonic() - began
    test = numbers % TEST_EVERY == 0
    model = LogisticRegression(max_iter=2000).fit(pixels[~test] / 16, labels[~test])
    score = model.score(pixels[test] / 16, labels[test])
    return f"{len(labels)} images read in {read_s:.2f} s, accuracy on {test.sum()} held out: {score:.3f}"


def story(shell: Shell, home: Path) -> None:
    """The demo's steps."""
    data = shell.cwd / "data"
    mounts = [home / "v1", home / "v2"]
    shell.run("git", "init", "-q", ".")
    shell.run("millpond", "init", "-q")
    write_digits(data / "images", FIRST_VERSION)
    shell.run("millpond", "add", "data")
    shell.run("git", "add", "-A")
    shell.run("git", "commit", "-qm", f"the first {FIRST_VERSION} digits")
    shell.run("git", "tag", "v1")
    write_digits(data / "images", len(load_digits().target))
    shell.run("millpond", "status")
    shell.run("millpond", "add", "data")
    shell.run("git", "commit", "-qam", "all digits")
    for mount, target in zip(mounts, ("data@v1", "data@HEAD"), strict=True):
        mount.mkdir()
        shell.run("millpond", "mount", target, str(mount))
    shell.run("ls", *map(str, mounts))
    for mount in mounts:
        print(f"\n{mount.name}: {train(mount / 'images')}")
    shell.run("millpond", "mounts")
    shell.run("millpond", "umount", "--all")
    shell.run("millpond", "fsck", "--deep")


def main() -> int:
    home = Path(tempfile.mkdtemp(prefix="millpond-demo-"))
    shell = Shell(home)
    try:
        story(shell, home)
        print("\nBoth versions were read through their mounts, and the store is clean.")
        return 0
    except subprocess.CalledProcessError as error:
        print(f"demo: `{' '.join(error.cmd)}` failed with exit code {error.returncode}", file=sys.stderr)
        return 1
    finally:
        for command in (["umount", "--all", "--lazy"], ["daemon", "stop"]):
            subprocess.run(["millpond", "-q", *command], cwd=shell.cwd, env=shell.env, check=False, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
