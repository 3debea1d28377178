"""Results as text and as JSON. Texts that DVC has, too, are compared with the real one in test_as_dvc.py."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from millpond.cli import history, mountlines, render, storelines
from millpond.cli.failure import detail_lines
from millpond.daemon import wirepath
from millpond.daemon.errors import ConflictError, MountBusyError

SHA = "4ea37bc45a4600dd7d93c53fb231e5b9d2a0dac5"


def mounted(**changes: Any) -> dict[str, Any]:
    return {
        "id": "0123456789ab",
        "mountpoint": "/mnt/a%0Ab",
        "target": "data",
        "commit": SHA,
        "state": "mounted",
        "engine": "pyfuse3",
        "pid": 4711,
        "since": 1000.0,
        "reads": 3,
        "files": 1401,
        "bytes": 1_000_000,
        "read_bytes": 512_000,
        "versions": False,
        "uid": 0,
        "error": None,
        **changes,
    }


def test_add_says_what_to_stage() -> None:
    result = {"added": [], "git_add": [".gitignore", "sp ace.dvc", "%C3%A9.dvc"], "autostaged": False}
    assert list(render.add_lines(result, config="../.dvc/config")) == [
        "",
        "To track the changes with git, run:",
        "",
        "\tgit add .gitignore 'sp ace.dvc' 'é.dvc'",
        "",
        "To enable auto staging, run:",
        "",
        "\tgit config -f ../.dvc/config core.autostage true",
    ]


def test_add_says_nothing_when_git_has_it_already() -> None:
    assert list(render.add_lines({"git_add": [], "autostaged": False}, config="c")) == []
    assert list(render.add_lines({"git_add": ["a.dvc"], "autostaged": True}, config="c")) == []


def test_add_verbose_says_what_was_stored() -> None:
    added = [
        {"path": "a%20b%01", "pointer": "p", "md5": "12.dir", "size": 2048, "nfiles": 1, "changed": True},
        {"path": "f", "pointer": "p", "md5": "34", "size": 3, "nfiles": None, "changed": False},
    ]
    assert list(render.add_lines({"added": added, "git_add": []}, config=None, verbose=True)) == [
        "a b\\x01: stored, 1 file, 2.05 kB, md5 12.dir",
        "f: unchanged, 3 B, md5 34",
    ]


def test_checkout_lists_by_state() -> None:
    result = {"added": ["n%20w", "x"], "modified": ["d/"], "deleted": ["o"], "unchanged": 1}
    assert list(render.checkout_lines(result, summary=False)) == [
        "M       d/",
        "A       n w",
        "A       x",
        "D       o",
    ]
    (line,) = render.checkout_lines(result, summary=True)
    assert line == "1 file modified, 2 files added and 1 file deleted"
    counts = {"modified": 0, "added": 5, "deleted": 0}
    assert list(render.checkout_lines(result | {"files": counts}, summary=True)) == ["5 files added"]
    painted = render.checkout_lines(result, summary=False, paint=lambda shown, color: f"<{color}>{shown}")
    assert next(painted) == "<yellow>M       d/"


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((0, 0, 0), "No changes."),
        ((0, 2, 0), "2 files added"),
        ((1, 0, 1), "1 file modified and 1 file deleted"),
        ((1, 3, 1), "1 file modified, 3 files added and 1 file deleted"),
    ],
)
def test_checkout_summary(counts: tuple[int, int, int], text: str) -> None:
    assert render.checkout_summary(dict(zip(("modified", "added", "deleted"), counts, strict=True))) == text


def test_status_groups() -> None:
    status = {
        "a%0Ab.dvc": [{"changed outs": {"data%FF": "modified", "x": "not in cache"}}, "always changed"],
        "dvc.yaml:s": ["changed command", {"changed deps": {"p": {"lr": "new"}}}],
    }
    assert list(render.status_lines(status)) == [
        "a\\nb.dvc:",
        "\tchanged outs:",
        "\t\tmodified:           data\udcff",
        "\t\tnot in cache:       x",
        "\talways changed",
        "dvc.yaml:s:",
        "\tchanged command",
        "\tchanged deps:",
        "\t\tp:",
        "\t\t\tnew:                lr",
    ]
    assert render.status_json(status) == {
        "a\nb.dvc": [{"changed outs": {"data\udcff": "modified", "x": "not in cache"}}, "always changed"],
        "dvc.yaml:s": ["changed command", {"changed deps": {"p": {"lr": "new"}}}],
    }


def test_decoded_json_names_any_file() -> None:
    name = os.fsdecode(b"50%\xff\n")
    result = {"added": [{"path": wirepath.encode(name), "md5": "%41"}], "git_add": [wirepath.encode(name)], "n": 1}
    shown = json.loads(json.dumps(render.decoded(result, frozenset({"path", "git_add"}))))
    assert shown == {"added": [{"path": name, "md5": "%41"}], "git_add": [name], "n": 1}


def test_mount_says_what_is_where() -> None:
    line = mountlines.mount_line(mounted())
    assert line == "Mounted data@4ea37bc45a46 on /mnt/a\\nb (1,401 files, 1.00 MB)"
    assert mountlines.mount_line(mounted(commit=None, files=1, bytes=0)) == "Mounted data on /mnt/a\\nb (1 file, 0 B)"
    assert mountlines.mount_line(mounted(target="", commit=None, versions=True)) == "Mounted all versions on /mnt/a\\nb"
    assert mountlines.mount_line(mounted(target="")).startswith("Mounted @4ea37bc45a46 on ")


def test_mounts_table_and_reasons() -> None:
    dead = mounted(mountpoint="/m", state="dead", pid=None, since=None, read_bytes=0, error="the holder\nwas killed")
    painted = list(
        mountlines.mounts_lines([mounted(), dead], now=1130.0, paint=lambda shown, color: f"{color}:{shown}")
    )
    assert painted == [
        "bold:MOUNTPOINT  VERSION            STATE    ENGINE   PID   SINCE       READ",
        "/mnt/a\\nb   data@4ea37bc45a46  mounted  pyfuse3  4711  2 min 10 s  512 kB",
        "red:/m          data@4ea37bc45a46  dead     pyfuse3  -     -           0 B",
        "/m: the holder\\nwas killed",
    ]
    assert list(mountlines.mounts_lines([], now=0)) == ["Nothing is mounted."]
    why = mounted(engine="direct", engine_why="it was asked for")
    assert list(mountlines.mounts_lines([why], now=0, verbose=True))[2:] == [
        "/mnt/a\\nb: engine direct: it was asked for"
    ]
    assert len(list(mountlines.mounts_lines([why], now=0))) == 2
    kernel = mounted(
        **{"passthrough": "only root may", "passthrough_files": 0, "passthrough_bytes": 0},
        **{"read_ahead_kb": 128, "read_ahead_why": "it may not be set"},
        **{"serving": 2, "serving_most": 4, "serving_why": ""},
    )
    assert list(mountlines.mounts_lines([kernel], now=0, verbose=True))[2:] == [
        "/mnt/a\\nb: passthrough only root may: 0 files, 0 B",
        "/mnt/a\\nb: read-ahead 128 KiB: it may not be set",
        "/mnt/a\\nb: served by 2 processes: 4 at most",
    ]
    alone = mounted(serving=1, serving_most=1, serving_why="", read_ahead_kb=1024, read_ahead_why="")
    assert list(mountlines.mounts_lines([alone], now=0, verbose=True))[2:] == [
        "/mnt/a\\nb: passthrough off: not with this engine",
        "/mnt/a\\nb: read-ahead 1024 KiB",
        "/mnt/a\\nb: served by 1 process",
    ]
    for files, size, killed, reason, told in (
        (0, 0, 0, "not\nhere", "small files are not brought ahead: not\\nhere"),
        (1, 2000, 0, "", "brought ahead: 1 file, 2.00 kB"),
        (1, 2000, 1, "", "brought ahead: 1 file, 2.00 kB; 1 process that did so was killed and replaced"),
        (0, 0, 2, "", "brought ahead: 0 files, 0 B; 2 processes that did so were killed and replaced"),
        (7, 0, 4, "it was killed", "brought ahead: 7 files, 0 B; no more: it was killed"),
    ):
        filled = mounted(filled_files=files, filled_bytes=size, filling_why=reason, fillers_killed=killed)
        assert list(mountlines.mounts_lines([filled], now=0, verbose=True))[2:] == [f"/mnt/a\\nb: {told}"]
    image = mounted(filled_files=0, filled_bytes=2000, filling_why="", filling_by_thread="not\nin a container")
    assert list(mountlines.mounts_lines([image], now=0, verbose=True))[2:] == [
        "/mnt/a\\nb: brought ahead: 2.00 kB, by a thread: not\\nin a container"
    ]


def test_umount_and_restore() -> None:
    assert list(mountlines.umount_lines({"unmounted": ["/a%20b"]})) == ["Unmounted /a b"]
    assert list(mountlines.umount_lines({"unmounted": []})) == ["Nothing is mounted."]
    result = {"restored": ["/a"], "failed": [{"mountpoint": "/b", "error": "gone"}]}
    assert list(mountlines.restore_lines(result)) == ["Restored /a", "Not restored: /b: gone"]
    assert list(mountlines.restore_lines({"restored": [], "failed": []})) == ["Nothing to restore."]


def test_fsck_clean() -> None:
    report = {"ok": True, "segments": 1, "records": 2914, "objects": 1800, "bytes": 1_410_000, "damaged": []}
    assert list(storelines.fsck_lines(report, deep=True)) == [
        "Checked 2,914 records in 1 segment, 1,800 objects, 1.41 MB, with every object's digest.",
        "The store is clean.",
    ]


def test_fsck_names_the_files_that_damage_hurts() -> None:
    damaged = [
        {"kind": "chunk", "id": "ab12", "segment": 3, "offset": 64, "reason": "bad checksum", "files": ["a\n in d"]},
        {"kind": "object", "id": "cd", "segment": None, "offset": None, "reason": "other digest", "files": []},
    ]
    report = {
        "ok": False,
        "segments": 4,
        "records": 9,
        "objects": 5,
        "bytes": 10,
        "damaged": damaged,
        "damaged_count": 7,
        "repaired": 0,
        "quarantined": 0,
    }
    assert list(storelines.fsck_lines(report, deep=False)) == [
        "chunk ab12 in segment 3: bad checksum",
        "\thurts a\\n in d",
        "object cd: other digest",
        "... and 5 more",
        "Checked 9 records in 4 segments, 5 objects, 10 B.",
        "The store is damaged: 7 findings. Run `millpond fsck --repair`.",
    ]
    repaired = report | {"repaired": 1, "quarantined": 2}
    assert list(storelines.fsck_lines(repaired, deep=False))[-2:] == [
        "Repaired 1, quarantined 2.",
        "The store is damaged: 7 findings.",
    ]


def test_cache_info() -> None:
    stats = {
        "path": "/c/millpond",
        "objects": 3601,
        "chunks": 2900,
        "segments": 1,
        "logical": 5_620_000,
        "unique": 2_810_000,
        "stored": 1_405_000,
        "free": 10**11,
        "dedup_ratio": 2.0,
        "compression_ratio": 2.0,
        "scrub": {"began": 0.0, "bytes": 0, "damaged": 0, "passed": 0.0, "passed_damaged": 0, "hurt": []},
    }
    assert list(storelines.cache_lines(stats, now=1e9)) == [
        "Store:        /c/millpond",
        "Objects:      3,601, 5.62 MB",
        "Chunks:       2,900, 2.81 MB",
        "On disk:      1.41 MB in 1 segment",
        "Saved:        2.00x by deduplication, 2.00x by compression",
        "Disk is free: 100 GB",
        "Read again:   not yet as a whole",
    ]
    stats["scrub"] = {
        "began": 9e8,
        "bytes": 702_500,
        "damaged": 1,
        "passed": 1e9 - 3600,
        "passed_damaged": 1,
        "hurt": ["a"],
    }
    assert list(storelines.cache_lines(stats, now=1e9))[-3:] == [
        "Read again:   all of it, 1 h ago; 50 % since",
        "DAMAGED:      2 records: see `millpond fsck`",
        "\ta",
    ]


def test_doctor_tells_what_to_do() -> None:
    checks = [
        {"name": "fuse", "ok": True, "detail": "/dev/fuse", "hint": "not shown"},
        {"name": "fusermount3", "ok": False, "detail": "missing", "hint": "apt install fuse3"},
    ]
    assert list(render.doctor_lines(checks)) == [
        "ok    fuse         /dev/fuse",
        "FAIL  fusermount3  missing",
        "                   apt install fuse3",
    ]


def test_daemon_status() -> None:
    status = {
        "pid": 7,
        "version": "0.1.0",
        "protocol": 1,
        "started": 10.0,
        "store": {"path": "/c"},
        "socket": "/s",
        "log": "/l",
        "requests": [{"id": "3-1", "method": "add", "uid": 0, "pid": 9, "seconds": 4.0}],
        "workers": 1,
        "mounts": 2,
        "rss": 100_000_000,
    }
    assert list(render.daemon_lines(status, now=140.0)) == [
        "The daemon runs: pid 7, since 2 min 10 s",
        "Version:  0.1.0, protocol 1",
        "Store:    /c",
        "Socket:   /s",
        "Log:      /l",
        "Memory:   100 MB",
        "At work:  1 request, 1 worker, 2 mounts",
        "\tadd of uid 0 (pid 9), request 3-1, 4 s",
    ]


def test_an_error_names_what_its_sentence_does_not() -> None:
    paths = [f"d/{number}" for number in range(30)]
    error = ConflictError("changed: 'd/0', 'd/1' ...", details={"paths": paths})
    # `d/1` is in the sentence, and so is no other.
    assert detail_lines(error)[:2] == ["d/2", "d/3"]
    assert detail_lines(error)[-1] == "... and 8 more"
    holder = {"pid": 7, "command": "ba\nsh", "user": "bob", "what": "cwd"}
    assert detail_lines(MountBusyError("in use", details={"holders": [holder]})) == ["ba\\nsh (pid 7, bob: cwd)"]
    assert detail_lines(ConflictError("plain")) == []


def test_what_stands_in_for_data_says_so() -> None:
    lines = list(mountlines.mounts_lines([mounted(stands_in="/repo/a%0Ab")], now=0))
    assert lines[2:] == ["/mnt/a\\nb: stands in for /repo/a\\nb while a repro needs it"]


def test_runs_tell_what_mounts_were_asked_for() -> None:
    run = {
        "stage": "train",
        "outcome": "ran",
        "began": 0.0,
        "usage": {"seconds": 1.0},
        "user": {"name": "a"},
        "host": {"name": "h"},
        "git": None,
    }
    assert "read" not in history.run_lines([run])[0], "where no run had mounts there is nothing to tell"
    row = {"path": "d", "opened": 3, "bytes": 1500, "waited_s": 1.0, "waited_disk_s": 0.5, "waited_unpacking_s": 0.0}
    reads = [{**row, "shared": False, "at_least": False}, {**row, "shared": True, "at_least": True}]
    lines = history.run_lines([run, {**run, "reads": reads, "waited_s": 3.0}])
    assert lines[0].split() == ["began", "stage", "outcome", "seconds", "read", "waited", "user", "host", "code"]
    assert "at least 3.00 kB  3.0" in lines[2] and lines[1].split()[-3:] == ["1.0", "a", "h"]
