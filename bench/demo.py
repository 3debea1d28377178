"""`make demo`: the main job on a real data set, in a directory of its own that is removed at the end.

scikit-learn's handwritten digits (1,797 images of 8 x 8) are written out as image files by class, with their CSV, and
kept in two versions; both are mounted at once, a model is trained by reading through each mount, and the store is
checked. A pipeline of three stages runs on them, and runs again what a changed parameter put out of date. Then both are pushed to an S3 server that the demo starts, the store is thrown away, and both are mounted and trained on
from the remote alone. Every line that begins with `$` is a command that was run.
"""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from bench import demo_pipeline

FIRST_VERSION = 1400
TEST_EVERY = 5
# Of the server that the demo starts.
S3_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "demo",
    "AWS_SECRET_ACCESS_KEY": "of-this-demo-only",
    "AWS_DEFAULT_REGION": "us-east-1",
}


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
            **S3_CREDENTIALS,
            "DVC_NO_ANALYTICS": "1",
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
    pipeline(shell)
    shell.run("millpond", "fsck", "--deep")
    with s3_server(home) as endpoint:
        from_a_remote(shell, home, endpoint, mounts)


def pipeline(shell: Shell) -> None:
    """Prepare, train, evaluate; a parameter is changed, what depends on it runs, and what that did is shown."""
    demo_pipeline.write(shell.cwd)
    shell.run("millpond", "dag")
    shell.run("millpond", "repro")
    shell.run("git", "add", "-A")
    shell.run("git", "commit", "-qm", "a pipeline")
    before = demo_pipeline.accuracy(shell.cwd)
    demo_pipeline.loosen(shell.cwd)
    shell.run("git", "diff", "-U0", "params.yaml")
    shell.run("millpond", "why", "train")
    shell.run("millpond", "repro", "--why")
    shell.run("millpond", "repro")
    shell.run("millpond", "jobs")
    shell.run("millpond", "metrics", "diff")
    shell.run("millpond", "plots", "diff")
    shell.run("git", "commit", "-qam", "trained more freely")
    shell.run("millpond", "repro", "--check")
    shell.run("millpond", "lineage", "model.npz")
    if demo_pipeline.accuracy(shell.cwd) <= before:
        raise RuntimeError(f"the model is no better than the first, whose accuracy was {before}")


def from_a_remote(shell: Shell, home: Path, endpoint: str, mounts: list[Path]) -> None:
    """Both versions pushed, the store thrown away, and both read from the remote alone; real DVC reads what was pushed."""
    shell.run("millpond", "remote", "add", "-d", "team", "s3://digits/team")
    shell.run("millpond", "remote", "modify", "team", "endpointurl", endpoint)
    shell.run("git", "commit", "-qam", "a remote")
    shell.run("millpond", "push", "--all-tags")
    shell.run("millpond", "push")
    shell.run("millpond", "push")
    shell.run("millpond", "daemon", "stop")
    shell.run("rm", "-r", str(home / "cache"), str(shell.cwd / "data"))
    for mount, target in zip(mounts, ("data@v1", "data@HEAD"), strict=True):
        shell.run("millpond", "mount", target, str(mount))
    for mount in mounts:
        print(f"\n{mount.name}, from the remote: {train(mount / 'images')}")
    shell.run("millpond", "mounts")
    shell.run("millpond", "umount", "--all")
    shell.run("git", "clone", "-q", str(shell.cwd), str(home / "clone"))
    shell.cwd = home / "clone"
    shell.run("dvc", "pull", "-q")
    shell.run("dvc", "status", "-c")


@contextlib.contextmanager
def s3_server(home: Path) -> Iterator[str]:
    """A real process that speaks S3 on this machine, with a bucket `digits`; its url."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    program = Path(sys.executable).parent / "moto_server"
    with open(home / "s3.log", "wb") as log:
        server = subprocess.Popen([str(program), "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the S3 server did not start: {(home / 's3.log').read_text()}")
            time.sleep(0.1)
        import boto3

        os.environ.update(S3_CREDENTIALS)
        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket="digits")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def main() -> int:
    home = Path(tempfile.mkdtemp(prefix="millpond-demo-"))
    shell = Shell(home)
    try:
        story(shell, home)
        print(
            "\nBoth versions were read through their mounts, from the store and from the remote alone; the store is clean."
        )
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
