"""The store's directory and its bytes as DESIGN.md has them; who may read it; where it may not lie."""

from __future__ import annotations

import json
import os
import re
import select
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests.store.helpers import put, sample, settings

from millpond.daemon.errors import StoreFormatError
from millpond.daemon.store import layout, manifests
from millpond.daemon.store.files import Files
from millpond.daemon.store.format import ensure_format, read_format
from millpond.daemon.store.index import Content, grant_key
from millpond.daemon.store.journal import NameBatch
from millpond.daemon.store.reader import StoreReader
from millpond.daemon.store.recipes import RecipeBuilder
from millpond.daemon.store.records import Kind, Location
from millpond.daemon.store.store import Store


def test_bytes_of_every_structure_have_not_moved(tmp_path: Path) -> None:
    """Literal bytes, so that a change of format is a decision and not an accident."""
    content = Content(Kind.RECIPE, bytes(range(32)), 0x0102030405)
    assert content.pack().hex() == "02" + bytes(range(32)).hex() + "0504030201000000"
    assert Location(1, 1, 7, 0x1122, 0x33, 0x44).pack().hex() == "01010000070000002211000000000000" + "3300000044000000"
    assert grant_key(1000, b"\xaa" * 32).hex() == "000003e8" + "aa" * 32
    recipe = RecipeBuilder()
    recipe.add(b"\xbb" * 32, 65537)
    assert recipe.payload().hex() == "0100010000000000" + "bb" * 32 + "01000100"
    names = NameBatch(1000)
    names.add(b"\x01" + b"\xcc" * 16, content)
    assert [each.hex() for each in (part.payload() for part in names.parts())] == [
        "01010000e803000001000000" + "11" + "01" + "cc" * 16 + content.pack().hex()
    ]
    (tmp_path / "segments").mkdir()
    uuid = bytes(range(16))
    made = {"format": 1, "uuid": uuid.hex(), "chunking": json.loads(CHUNKING)}
    (tmp_path / "format.json").write_text(json.dumps(made))
    assert read_format(tmp_path).uuid == uuid
    store = Store.open(settings(tmp_path))
    put(store, [b"x"])
    assert (tmp_path / "segments" / "0000000001.seg").read_bytes()[:32] == b"MPSEG001" + b"\1" + bytes(7) + uuid
    store.close()


CHUNKING = """{"algorithm": "fastcdc-2020-pyfastcdc0.3-nc2", "min": 65536, "average": 262144, "max": 1048576}"""


def modes(path: Path) -> dict[str, str]:
    """Mode and owning group of everything in a store."""
    found = {}
    for each in [path, *path.rglob("*")]:
        status = each.stat()
        found[str(each.relative_to(path))] = f"{stat.S_IMODE(status.st_mode):o} {status.st_gid}"
    return found


@pytest.mark.parametrize("umask", [0o077, 0o022, 0])
def test_nobody_else_can_read_a_users_store(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = Store.open(settings(tmp_path / "s"))
        put(store, [sample(1, 5000)])
        store.close()
    finally:
        os.umask(before)
    assert {mode.split()[0] for name, mode in modes(tmp_path / "s").items()} <= {"700", "600"}


@pytest.mark.root
@pytest.mark.parametrize("umask", [0o077, 0o022])
def test_a_group_reads_a_shared_store_and_writes_only_its_readers_slots(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = Store.open(settings(tmp_path / "s", group=4711))
        item = put(store, [sample(1, 5000)])[0]
    finally:
        os.umask(before)
    found = modes(tmp_path / "s")
    assert found["segments/0000000001.seg"] == found["format.json"] == found["index/data.mdb"] == "640 4711"
    assert found["index/lock.mdb"] == "660 4711"
    assert found["index"] == found["segments"] == found["."] == "2750 4711"
    assert found["lock"].startswith("600 ")
    os.chmod(tmp_path, 0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            os.chmod(parent, parent.stat().st_mode | 0o011)
    command = [sys.executable, "-c", READ, str(tmp_path / "s"), item.name.value]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == [sample(1, 5000).hex(), "refused", "refused"], done.stderr
    store.close()


READ = f"""
import os, sys
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).resolve().parents[2])!r}, {str(Path(__file__).resolve().parents[2] / ".src")!r}]
from millpond.daemon.names import ObjectName
from millpond.daemon.store.reader import StoreReader
# Now a stranger in the group: the interpreter's own files may be out of his reach, so everything is imported before.
os.setgroups([4711])
os.setgid(4712)
os.setuid(4712)
reader = StoreReader.open(Path(sys.argv[1]))
content = reader.resolve([ObjectName("md5", sys.argv[2])], 1000)[0]
print(reader.read_content(content).hex())
for path in ("index/data.mdb", "segments/0000000001.seg"):
    try:
        os.open(os.path.join(sys.argv[1], path), os.O_RDWR)
        print("opened")
    except PermissionError:
        print("refused")
"""


@pytest.fixture
def network_mount(tmp_path: Path) -> Iterator[Path]:
    """A real mount whose type is `fuse.sshfs`, by a server that knows one empty directory."""
    place = tmp_path / "remote"
    place.mkdir()
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(place)], stdout=subprocess.PIPE)
    assert server.stdout is not None
    try:
        assert select.select([server.stdout], [], [], 30)[0] and server.stdout.readline() == b"ready\n"
        yield place
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(place)], check=True)
        server.wait(30)
        server.stdout.close()


SERVER = """
import os, stat, sys
import pyfuse3, trio
class Empty(pyfuse3.Operations):
    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode = inode, stat.S_IFDIR | 0o755
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        return entry
pyfuse3.init(Empty(), sys.argv[1], {"fsname=far", "subtype=sshfs"})
print("ready", flush=True)
try:
    trio.run(pyfuse3.main)
finally:
    pyfuse3.close(unmount=False)
"""


@pytest.mark.fuse
def test_a_store_on_a_network_file_system_is_refused(network_mount: Path) -> None:
    with pytest.raises(StoreFormatError, match=re.escape("network file system (fuse.sshfs)")) as caught:
        Store.open(settings(network_mount))
    assert "MILLPOND_STORE" in str(caught.value)
    assert layout.file_system(network_mount.parent) not in layout.NETWORK


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_mountpoint_of_any_bytes_keeps_no_store_from_being_opened(tmp_path: Path) -> None:
    place = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(place)
    subprocess.run([b"mount", b"-t", b"tmpfs", b"none", place], check=True)
    try:
        Store.open(settings(tmp_path / "s")).close()
        assert layout.file_system(Path(os.fsdecode(place))) == "tmpfs"
    finally:
        subprocess.run([b"umount", place], check=True)


def test_a_reader_of_no_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreFormatError, match="is no store"):
        StoreReader.open(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"format": 1, "uuid": "00"}', '{"format": "x"}', "\x00"])
def test_a_format_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    Store.open(settings(tmp_path / "s")).close()
    (tmp_path / "s" / "format.json").write_text(text)
    with pytest.raises(StoreFormatError, match="not a store's format file"):
        Store.open(settings(tmp_path / "s"))
    assert (tmp_path / "s" / "format.json").read_text() == text


def test_segments_without_a_format_file_are_not_taken_for_a_new_store(tmp_path: Path) -> None:
    (tmp_path / "segments").mkdir()
    (tmp_path / "segments" / "0000000001.seg").write_bytes(b"MPSEG001")
    with pytest.raises(StoreFormatError, match="no format.json"):
        ensure_format(tmp_path, Files(), 0o600)


names = st.text(st.characters(exclude_categories=()), min_size=1, max_size=20)


@hypothesis_settings(max_examples=150)
@given(st.lists(st.tuples(names, st.text("0123456789abcdef", min_size=32, max_size=32)), max_size=12), st.data())
def test_manifest_entries_come_back_however_the_bytes_are_cut(rows: list[tuple[str, str]], data: st.DataObject) -> None:
    # DVC's form, in which entries are read many at a time, and another.
    indent = data.draw(st.sampled_from([None, 1]))
    ascii_only = data.draw(st.booleans()) or any(0xD800 <= ord(char) < 0xE000 for name, _ in rows for char in name)
    text = json.dumps(
        [{"md5": digest, "relpath": name} for name, digest in rows], indent=indent, ensure_ascii=ascii_only
    )
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert list(manifests.entries(pieces)) == rows


@given(st.binary(max_size=60) | st.text('[]{},:"md5relpath 0a\\', max_size=60).map(str.encode))
def test_what_is_no_manifest_says_so(raw: bytes) -> None:
    try:
        found = list(manifests.entries([raw]))
    except manifests.NotAManifest:
        return
    assert [(row["relpath"], row["md5"]) for row in json.loads(raw)] == found


def test_a_value_that_never_ends_is_not_waited_for() -> None:
    pieces = iter([b'[{"md5": "' + b"a" * 1_000_000, b"more"])
    with pytest.raises(manifests.NotAManifest, match="too long"):
        list(manifests.entries(pieces))
    assert next(pieces) == b"more"
