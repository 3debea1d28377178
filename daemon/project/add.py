"""`add`: store files and folders, write their pointers, keep Git out of the data.

Order, so that a failure leaves the project as it was: check all targets; store all bytes; commit the store; then write
pointers and `.gitignore`, stage them, and remember the digests. Data named by a pointer is durable before the pointer is.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.errors import TargetError, UsageError
from millpond.daemon.names import ObjectName
from millpond.daemon.project import dvcfile, elsewhere, manifest, pointers, running, targets
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.copying import replace_link
from millpond.daemon.project.digests import LEGACY, Group, fill, forget_missing
from millpond.daemon.project.durable import write_error
from millpond.daemon.project.dvcfile import Out
from millpond.daemon.project.export import dvc_is_used, export_after, exports
from millpond.daemon.project.importing.addurl import add_from_elsewhere, is_from_elsewhere
from millpond.daemon.project.importing.pointer import with_md5
from millpond.daemon.project.placer import Placer
from millpond.daemon.project.plan import Content
from millpond.daemon.project.repo import Repo, printable
from millpond.daemon.project.select import refuse_clashes
from millpond.daemon.project.targets import Target
from millpond.daemon.project.walk import Listing, stat_fields
from millpond.daemon.project.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Options:
    """What `add` was asked for; `store` False for --no-commit."""

    names: list[str]
    glob: bool
    store: bool
    force: bool
    out: str | None
    relink: bool

    @classmethod
    def of(cls, params: dict[str, Any]) -> Options:
        names = [wirepath.decode(target) for target in params.get("targets") or []]
        out = params.get("out")
        if not names:
            raise UsageError("nothing to add: give a file or a folder")
        if out is not None and len(names) > 1:
            raise UsageError("several targets cannot be used with --out")
        if out is not None and params.get("glob"):
            raise UsageError("--glob cannot be used with --out")
        return cls(
            names=names,
            glob=bool(params.get("glob")),
            store=not params.get("no_commit"),
            force=bool(params.get("force")),
            out=None if out is None else wirepath.decode(out),
            relink=not (params.get("no_relink") or params.get("no_commit")),
        )


@dataclass(slots=True)
class _Job:
    """A target on its way: its files are all of `group`, or the one at `index` in a group that several share; `legacy`
    has the same files under their old names."""

    target: Target
    group: Group
    index: int | None = None
    legacy: Group | None = None
    name: ObjectName | None = None
    size: int | None = None
    nfiles: int | None = None
    manifest: bytes | None = None
    changed: bool = False

    @property
    def isexec(self) -> bool:
        return not self.target.is_dir and bool(os.stat(self.target.source).st_mode & 0o111)

    @property
    def indexes(self) -> range:
        """Where its files are in `group`."""
        return range(len(self.group.listing.paths)) if self.index is None else range(self.index, self.index + 1)

    def legacy_name(self) -> ObjectName | None:
        if self.legacy is None:
            return None
        return self.legacy.tree() if self.index is None else self.legacy.name(self.index)

    def out(self) -> Out:
        """The pointer's out as it should be now."""
        old = self.target.out
        name = os.path.basename(self.target.path) if old is None else old.path
        cache, extra = (True, {}) if old is None else (old.cache, old.extra)
        isexec = self.isexec if self.nfiles is None else False
        return Out(name, self.name, self.size, self.nfiles, isexec, cache, extra)


def add(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {targets, glob, no_commit, force, out, no_relink, to_remote, remote, remote_jobs} -> {added, git_add, autostaged, warnings, totals}.

    added: [{path, pointer, md5, size, nfiles (None for a file), changed}], paths as seen from the caller's folder. Raises
    TargetError, OverlapError, TrackedByGitError, InvalidFileError, FileChangedError, DiskFullError, NotMountedError,
    NotARepoError, UsageError; the project is as it was then.
    """
    options = Options.of(params)
    if is_from_elsewhere(params):
        return add_from_elsewhere(context, params)
    repo = Repo.open(os.getcwd(), os.environ)
    with context.lock(repo.root, "write"):
        outputs = repo.outputs()
        refuse_clashes(outputs)
        if options.out is not None:
            chosen = [targets.resolve_out(repo, options.names[0], options.out, outputs, force=options.force)]
        else:
            names = targets.expand(repo, options.names) if options.glob else options.names
            chosen = targets.resolve(repo, names, outputs)
        return Adding(context, repo, options).run(chosen)


class Adding:
    """One `add`, after its targets were checked."""

    def __init__(self, context: VerbContext, repo: Repo, options: Options) -> None:
        self._context = context
        self._repo = repo
        self._options = options
        self._workspace = Workspace(repo, context.store)
        self._warnings: list[str] = []

    def run(self, chosen: list[Target]) -> dict[str, Any]:
        running.refuse(self._repo, reads=[target.path for target in chosen], env=os.environ)
        jobs = self._jobs(chosen)
        self._hash(jobs)
        for job in jobs:
            self._name(job)
        if self._options.store:
            self._context.progress("committing")
            self._context.store.commit()
            git = self._repo.git
            names = [job.name for job in jobs if job.name is not None]
            self._context.seen(self._repo.root, None if git is None else git.git_dir, names)
        self._keep_legacy(jobs)
        git_add = self._write(jobs)
        self._settle(jobs)
        if self._options.store:
            export_after(self._context, self._repo, [job.target.path for job in jobs], os.environ)
            if jobs and dvc_is_used(self._repo) and not exports(self._repo, os.environ):
                self._warnings.append(
                    "real DVC is used in this project and does not see what was stored now; "
                    "`millpond cache export` brings it there"
                )
        return self._result(jobs, git_add)

    def _jobs(self, chosen: list[Target]) -> list[_Job]:
        """The targets' files as they are now, in the targets' order."""
        if self._options.out is not None:
            (target,) = chosen
            base = target.source if target.is_dir else os.path.dirname(target.source)
            return [
                _Job(
                    target,
                    Group.of(base, elsewhere.listing(target.source, is_dir=target.is_dir), None),
                    None if target.is_dir else 0,
                )
            ]
        single = [target for target in chosen if not target.is_dir and not target.gone]
        plain = [_relative(target) for target in single if not _is_legacy(target)]
        old = [_relative(target) for target in single if _is_legacy(target)]
        shared = self._workspace.files(plain)
        shared_old = self._workspace.files(old), self._workspace.files(old, LEGACY)
        jobs, plain_at, old_at = [], itertools.count(), itertools.count()
        for target in chosen:
            if target.gone:
                jobs.append(_Job(target, Group.of(target.source, Listing(), None)))
            elif target.is_dir:
                jobs.append(self._folder_job(target))
            elif _is_legacy(target):
                jobs.append(_Job(target, shared_old[0], next(old_at), shared_old[1]))
            else:
                jobs.append(_Job(target, shared, next(plain_at)))
        return jobs

    def _folder_job(self, target: Target) -> _Job:
        relative = _relative(target)
        group = self._workspace.folder(relative)
        for path, reason in group.listing.odd:
            shown = printable(self._repo.seen(f"{relative}/{path}"))
            raise TargetError(
                f"cannot add '{shown}': it {reason}", path=shown, hint="remove it, or name it in .dvcignore"
            )
        for path in group.listing.skipped:
            shown = printable(self._repo.seen(f"{relative}/{path}"))
            self._warnings.append(f"'{shown}' is a link to a folder and was left out")
        legacy = Group.of(group.base, group.listing, None, LEGACY) if _is_legacy(target) else None
        return _Job(target, group, None, legacy)

    def _hash(self, jobs: list[_Job]) -> None:
        """Digests for all files; what must be stored goes to the store in one stream."""

        def progress(files: int, all_files: int, done: int, total: int) -> None:
            self._context.progress("adding", (files, all_files), (done, total))

        fill(_distinct(job.legacy for job in jobs), self._context.store, keep=False)
        groups = _distinct(job.group for job in jobs)
        if self._options.store:
            forget_missing(groups, self._workspace.objects)
        fill(groups, self._context.store, keep=self._options.store, progress=progress)

    def _name(self, job: _Job) -> None:
        """Name, size and count; a folder's manifest is stored."""
        group = job.group
        if job.target.inner:
            self._merge(job)
        elif job.target.is_dir:
            job.name, job.nfiles, job.size = group.tree(), len(group.listing.paths), group.listing.total
            job.manifest = group.text()
        else:
            assert job.index is not None
            job.name, job.size = group.name(job.index), group.size(job.index)
        if job.manifest is not None and self._options.store:
            assert job.name is not None
            # Also where DVC's cache has it: it is small, and says which files a damage in the store hurts.
            if self._context.store.sizes([job.name])[0] is None:
                former = None if job.target.out is None else job.target.out.name
                stored = self._context.store.put_bytes(job.manifest, is_dir=True, like=former)
                assert stored == job.name

    def _merge(self, job: _Job) -> None:
        """A tracked folder's manifest with one part of it replaced by what is there now."""
        target, group = job.target, job.group
        assert target.out is not None
        old = target.out.name
        entries: dict[str, ObjectName] = {}
        if old is not None:
            raw = self._workspace.objects.manifest(old)
            if raw is None or old.algo == LEGACY:
                raise TargetError(
                    f"cannot add a part of '{printable(target.path)}': "
                    + ("it has a name of DVC 2" if raw is not None else "its list of files is not at hand"),
                    path=printable(target.path),
                    hint=f"add all of it: millpond add {printable(self._repo.seen(target.path))}",
                )
            entries = {entry.relpath: entry.name for entry in manifest.parse(raw, source=str(old))}
        part = [path for path in entries if path == target.inner or path.startswith(f"{target.inner}/")]
        if target.gone and not part:
            shown = printable(self._repo.seen(f"{target.path}/{target.inner}"))
            raise TargetError(f"'{shown}' does not exist", path=shown)
        for path in part:
            del entries[path]
        for index in job.indexes:
            inner = f"{target.inner}/{group.listing.paths[index]}" if target.is_dir else target.inner
            entries[inner] = group.name(index)
        self._refuse_clash(target, entries)
        rows = sorted(entries.items(), key=lambda item: manifest.sort_key(item[0]))
        job.manifest = manifest.serialise((path, name.value) for path, name in rows)
        job.name, job.nfiles = manifest.manifest_name(job.manifest), len(rows)
        job.size = self._sum(entries, job)

    def _refuse_clash(self, target: Target, entries: dict[str, ObjectName]) -> None:
        """A file where others of the manifest have a folder: they are gone, so add all of it."""
        parts = target.inner.split("/")
        above = ["/".join(parts[:end]) for end in range(1, len(parts))]
        for path in above:
            if path in entries:
                del entries[path]
        below = f"{target.inner}/"
        if target.inner in entries:
            for path in [path for path in entries if path.startswith(below)]:
                del entries[path]

    def _sum(self, entries: dict[str, ObjectName], job: _Job) -> int | None:
        """Bytes of all entries, None when one's size is not known."""
        fresh = {job.group.name(index): job.group.size(index) for index in job.indexes}
        others = [name for name in entries.values() if name not in fresh]
        sizes = self._workspace.objects.sizes(others)
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            return None
        return sum(known) + sum(fresh[name] for name in entries.values() if name in fresh)

    def _keep_legacy(self, jobs: list[_Job]) -> None:
        """Leave an unchanged legacy out as it is, as long as its old names lead to the data."""
        for job in jobs:
            name, out = job.legacy_name(), job.target.out
            if job.legacy is None or out is None or name is None or name != out.name:
                continue
            names = [name, *(job.legacy.name(index) for index in job.indexes)]
            if not self._options.store or None not in self._workspace.objects.sizes(names):
                job.name, job.size, job.nfiles = out.name, out.size, out.nfiles

    def _write(self, jobs: list[_Job]) -> list[str]:
        """Pointers and `.gitignore`; what to give to `git add`, relative."""
        texts: dict[str, tuple[str | None, str]] = {}
        for job in jobs:
            texts[job.target.pointer] = self._text(job, texts)
        cached = [job.target.path for job in jobs if job.target.out is None or job.target.out.cache]
        if self._options.out is not None:
            try:
                self._put_out(jobs[0])
            except OSError as error:
                raise write_error(error) from error
        return pointers.write(self._repo, texts, cached)

    def _text(self, job: _Job, texts: dict[str, tuple[str | None, str]]) -> tuple[str | None, str]:
        """A pointer's text before and after; several outs of one pointer build on each other."""
        target, out = job.target, job.out()
        if target.old is None:
            job.changed = True
            return None, dvcfile.new_text(out)
        before, current = texts.get(target.pointer, (target.old.text, target.old.text))
        pointer = target.old if current == target.old.text else dvcfile.parse(current, target.old.path)
        text = dvcfile.updated_text(pointer, [out], lambda: self._rows(job))
        if text != current and pointer.is_import:
            text = with_md5(text, pointer.path)
        job.changed = text != current
        return before, text

    def _rows(self, job: _Job) -> list[tuple[str, str, int | None]]:
        """The files of a folder: path, MD5, bytes."""
        fresh = {job.group.name(index): job.group.size(index) for index in job.indexes}
        entries = manifest.parse(job.manifest or job.group.text(), source=job.target.path)
        sizes = self._workspace.objects.sizes([entry.name for entry in entries])
        return [
            (entry.relpath, entry.name.hex, fresh.get(entry.name) if size is None else size)
            for entry, size in zip(entries, sizes, strict=True)
        ]

    def _put_out(self, job: _Job) -> None:
        """The copy that --out asks for, in place of what is there."""
        assert job.name is not None
        content = Content(job.target.path, job.name, job.isexec)
        Placer(self._context, self._workspace).put(content)

    def _settle(self, jobs: list[_Job]) -> None:
        """Replace links by the files they point to, as DVC does, and remember the digests."""
        if self._options.out is not None:
            return
        if self._options.relink:
            for job in jobs:
                self._replace_links(job)
        for job in jobs:
            if job.target.is_dir and not job.target.inner:
                self._workspace.keep_folder(job.target.path, job.group, job.group.tree().value)
        whole = [job.group for job in jobs if job.index is not None and not job.target.inner]
        for group in _distinct(whole):
            self._workspace.keep_files(group)
        self._workspace.save()

    def _replace_links(self, job: _Job) -> None:
        group = job.group
        links = group.listing.links if job.index is None else [job.index] if job.target.is_link else []
        for index in links:
            # Its ctime is now: the stat cache will take it as racy, and it is read once more.
            group.note(index, group.digests[index], stat_fields(replace_link(group.path(index))))

    def _result(self, jobs: list[_Job], git_add: list[str]) -> dict[str, Any]:
        added = []
        for job in jobs:
            assert job.name is not None
            added.append(
                {
                    "path": self._repo.wire(job.target.path),
                    "pointer": self._repo.wire(job.target.pointer),
                    "md5": job.name.value,
                    "size": job.size,
                    "nfiles": job.nfiles,
                    "changed": job.changed,
                }
            )
        return {
            "added": added,
            "git_add": self._repo.for_git(git_add),
            "autostaged": self._repo.git is not None and self._repo.config.flag("core", "autostage"),
            "warnings": [wirepath.encode(warning) for warning in self._warnings],
            "totals": {
                "files": sum(len(job.indexes) for job in jobs),
                "bytes": sum(job.group.size(index) for job in jobs for index in job.indexes),
                "new_bytes": getattr(self._context.store, "new_bytes", None),
            },
        }


def _relative(target: Target) -> str:
    return f"{target.path}/{target.inner}" if target.inner else target.path


def _is_legacy(target: Target) -> bool:
    return target.out is not None and target.out.legacy and not target.inner


def _distinct(groups: Iterable[Group | None]) -> list[Group]:
    """Each group once, in order."""
    return list({id(group): group for group in groups if group is not None}.values())
