"""MD5 of several streams at once, beside hashlib's."""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.daemon.md5.code import Code, Kept
from millpond.daemon.md5.digests import LaneDigest, Lanes
from millpond.daemon.md5.kernels import WIDEST, Kernels
from millpond.daemon.md5.source import source
from millpond.daemon.md5.streams import Stream, single, update

KERNELS = Kernels.of_here()


def why_not() -> str:
    """Why there can be no kernels here, whatever this project does; "" where they must be made, and be right."""
    if KERNELS is None:
        return "llvmlite is not installed, or this processor's numbers begin at their other end"
    try:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        llvm.Target.from_default_triple().create_target_machine(cpu=llvm.get_host_cpu_name())
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"llvmlite does not work: {error!r}"
    return ""


needs_kernels = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
# Sizes at which padding and blocks end.
EDGES = (0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 129)


def kernels() -> Kernels:
    assert KERNELS is not None
    return KERNELS


@needs_kernels
@pytest.mark.parametrize("count", range(1, WIDEST + 1))
def test_so_many_streams_at_once(count: int) -> None:
    # Enough for each width to be made, and of different lengths, so that narrower ones take over.
    contents = [random.Random(number).randbytes((1 << 20) + 64 * 1000 * number + number) for number in range(count)]
    streams = [Stream(kernels()) for _ in contents]
    update(streams, [memoryview(content) for content in contents])
    assert [stream.hexdigest() for stream in streams] == [hashlib.md5(content).hexdigest() for content in contents]


@needs_kernels
@given(
    st.lists(
        st.lists(st.one_of(st.sampled_from(EDGES), st.integers(0, 5000)), max_size=5), min_size=1, max_size=WIDEST + 3
    ),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
@hypothesis.settings(deadline=None)
def test_parts_that_come_in_any_pieces_and_turns(lengths: list[list[int]], threads: int, chance: random.Random) -> None:
    """Each stream's parts in order, the streams in any, hashed whenever somebody says so by several threads."""
    parts = [[chance.randbytes(length) for length in stream] for stream in lengths]
    turns = [number for number, stream in enumerate(parts) for _ in stream]
    chance.shuffle(turns)
    with ThreadPoolExecutor(threads) as pool:
        lanes = Lanes(kernels(), pool.submit, threads)
        streams: list[LaneDigest] = [lanes.digest() for _ in parts]
        waiting = [iter(stream) for stream in parts]
        done: list[Future[None]] = []
        for number in turns:
            done.append(streams[number].add(memoryview(next(waiting[number]))))
            if chance.random() < 0.3:
                lanes.start()
        lanes.start()
        for each in done:
            each.result(10)
    found = [stream.hexdigest() for stream in streams]
    assert found == [hashlib.md5(b"".join(stream)).hexdigest() for stream in parts]


@needs_kernels
@pytest.mark.parametrize("tail", [0, 1, 63, 64, 1000])
def test_a_stream_by_itself(tail: int) -> None:
    assert kernels().are_usable()
    content = random.Random(tail).randbytes((2 << 20) + 77 + tail)
    for hasher in (single(kernels()), single(None)):
        for begin, end in itertools.pairwise([0, 13, 77, (1 << 20) + 77, (2 << 20) + 77, len(content)]):
            hasher.update(memoryview(content)[begin:end])
        assert hasher.hexdigest() == hashlib.md5(content).hexdigest()


@needs_kernels
def test_memory_that_cannot_be_written_is_hashed() -> None:
    with mmap.mmap(-1, 1 << 16) as memory:
        memory.write(b"written once")
        view = memoryview(memory).toreadonly()
        stream = Stream(kernels())
        update([stream], [view])
        assert stream.hexdigest() == hashlib.md5(view).hexdigest()
        view.release()


@needs_kernels
def test_a_pool_that_takes_no_more_leaves_nobody_waiting() -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    lanes = Lanes(kernels(), pool.submit, 1)
    done = [lanes.digest().add(memoryview(b"abc")) for _ in range(3)]
    with pytest.raises(RuntimeError):
        lanes.start()
    assert all(each.cancelled() for each in done)


@needs_kernels
def test_where_new_code_may_not_run_there_are_no_kernels() -> None:
    """The kernel's own refusal of memory that was written and becomes executable, as hardened services have it."""
    text = """
import ctypes, sys
from millpond.daemon.md5.kernels import Kernels
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):
    sys.exit(77)
found = Kernels.of_here()
assert found is not None and not found.tried
assert not found.are_usable() and found.tried is False
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("this system cannot forbid it")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "text", ["import nothing_of_that_name", "raise OSError('libLLVM.so')", "raise RuntimeError('other LLVM')", ""]
)
def test_an_llvmlite_that_does_not_work_is_none(tmp_path: Path, text: str) -> None:
    """Not the one of here: one whose library does not load, or of which half is there."""
    (tmp_path / "llvmlite/binding").mkdir(parents=True)
    (tmp_path / "llvmlite/__init__.py").touch()
    (tmp_path / "llvmlite/binding/__init__.py").write_text(text)
    ask = """
import sys
from pathlib import Path
from millpond.daemon.md5.code import Kept
from millpond.daemon.md5.kernels import Kernels
found = Kernels(Kept(Path(sys.argv[1])))
assert not found.are_usable() and found.tried is False
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", ask, tmp_path / "kept"], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")


@needs_kernels
def test_what_was_made_is_there_for_the_next_process(tmp_path: Path) -> None:
    first = Kernels(Kept(tmp_path))
    assert first.tried is None
    assert first.are_usable()
    if not list(tmp_path.glob("*.code")):
        pytest.skip("this processor's code is not kept")
    text = """
import hashlib, sys
from pathlib import Path
from millpond.daemon.md5.code import Kept
from millpond.daemon.md5.kernels import Kernels
from millpond.daemon.md5.streams import Stream, update
found = Kernels(Kept(Path(sys.argv[1])))
assert found.tried
streams = [Stream(found) for _ in range(3)]
update(streams, [memoryview(b"%d" % number * 1000) for number in range(3)])
assert [stream.hexdigest() for stream in streams] == [hashlib.md5(b"%d" % number * 1000).hexdigest() for number in range(3)]
assert not any(name.startswith("llvmlite") for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", text, tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@needs_kernels
def test_code_that_is_damaged_or_wrong_is_not_run_and_made_anew(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    assert Kernels(kept).are_usable()
    for path in tmp_path.glob("*.code"):
        whole = path.read_bytes()
        for damaged in (b"", whole[:40], whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), whole + b"\0"):
            path.write_bytes(damaged)
            assert Kernels(kept).tried is None
        # Whole, and no MD5: a function that returns at once.
        kept.keep("md5x4", source(4), Code(b"\xc3", 0))
        found = Kernels(kept)
        assert found.tried is None and found.are_usable()
        assert path.read_bytes() == whole


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _of_another_kernel(path: Path) -> None:
    """Whole and ours, by a wrong name: one of sixteen streams writes beyond the states of four."""
    other = Kernels(Kept(path.parent / "other"))
    (path.parent / "other").mkdir()
    update([Stream(other) for _ in range(9)], [memoryview(bytes(64))] * 9)
    next((path.parent / "other").glob("md5x16.*")).rename(path)


REFUSED: dict[str, Callable[[Path], None]] = {
    "a link": _link,
    "a pipe": _pipe,
    "a folder": _folder,
    "the group may write": lambda path: path.chmod(0o664),
    "all may write": lambda path: path.chmod(0o646),
    "another user's": lambda path: os.chown(path, 65534, 65534),
    "another kernel's": _of_another_kernel,
    "endless": lambda path: os.truncate(path, 1 << 40),
}


@needs_kernels
@pytest.mark.parametrize("what", REFUSED)
def test_code_that_others_may_have_written_is_not_run(tmp_path: Path, what: str) -> None:
    kept = Kept(tmp_path)
    assert Kernels(kept).are_usable()
    found = list(tmp_path.glob("md5x4.*"))
    if not found:
        pytest.skip("this processor's code is not kept")
    whole = found[0].read_bytes()
    REFUSED[what](found[0])
    kernels = Kernels(kept)
    assert kernels.tried is None
    assert kernels.are_usable()
    if what != "a folder":
        assert not found[0].is_symlink() and found[0].read_bytes() == whole
        assert found[0].stat().st_uid == os.getuid() and Kernels(kept).tried


@needs_kernels
def test_processes_that_keep_the_same_at_once_leave_one_whole_file_each(tmp_path: Path) -> None:
    text = "import sys; from pathlib import Path; from millpond.daemon.md5 import code, kernels; "
    text += "assert kernels.Kernels(code.Kept(Path(sys.argv[1]))).are_usable()"
    running = [subprocess.Popen([sys.executable, "-c", text, tmp_path]) for _ in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert len(list(tmp_path.iterdir())) <= 1
    assert Kernels(Kept(tmp_path)).tried in (True, None)


def test_what_a_killed_process_left_is_bounded_too(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"some.code.{number}").touch()
    Kept(tmp_path).keep("some", "text", Code(b"\xc3", 0))
    assert len(list(tmp_path.iterdir())) == 40
    assert Kept(tmp_path).find("some", "text") is not None


def test_what_is_kept_is_bounded_and_refused_folders_are_no_error(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    for number in range(50):
        kept.keep(f"some{number}", "text", Code(b"\xc3", 0))
    assert len(list(tmp_path.iterdir())) == 40
    assert kept.find("some49", "text") == Code(b"\xc3", 0)
    assert kept.find("some49", "other text") is None
    Kept(tmp_path / "some" / "folder").keep("some", "text", Code(b"\xc3", 0))
    Kept(tmp_path, writes=False).keep("more", "text", Code(b"\xc3", 0))
    assert kept.find("more", "text") is None
