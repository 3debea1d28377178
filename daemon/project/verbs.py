"""The table of verbs: what a worker runs for a method of that name."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from millpond.daemon import wirepath
from millpond.daemon.jobs.jobverbs import VERBS as JOB_VERBS
from millpond.daemon.mounts.checkout import checkout
from millpond.daemon.mounts.look import look, url
from millpond.daemon.mounts.verbs import VERBS as MOUNT_VERBS
from millpond.daemon.pipeline import metrics, paramsdiff
from millpond.daemon.pipeline.commit import commit
from millpond.daemon.pipeline.lineage import lineage
from millpond.daemon.pipeline.listing import dag, stage_list
from millpond.daemon.pipeline.plots import modify
from millpond.daemon.pipeline.plots import verbs as plots
from millpond.daemon.pipeline.repro import repro
from millpond.daemon.pipeline.runs import runs
from millpond.daemon.pipeline.stageadd import stage_add
from millpond.daemon.pipeline.status import status
from millpond.daemon.pipeline.why import why
from millpond.daemon.project.add import add
from millpond.daemon.project.cacheimport import import_
from millpond.daemon.project.cacheinfo import cache_info
from millpond.daemon.project.cachemigrate import migrate
from millpond.daemon.project.cacheverify import verify
from millpond.daemon.project.checkignore import check_ignore
from millpond.daemon.project.cloudstatus import cloud_status
from millpond.daemon.project.configedit import cache_dir, config_verb
from millpond.daemon.project.context import VerbContext
from millpond.daemon.project.datastatus import data_status
from millpond.daemon.project.diff import diff
from millpond.daemon.project.evict import evict, make_room
from millpond.daemon.project.export import export
from millpond.daemon.project.fetch import fetch, pull, warm
from millpond.daemon.project.freeze import freeze
from millpond.daemon.project.fsck import fsck
from millpond.daemon.project.gc import forget_project, gc, pin, unpin
from millpond.daemon.project.hooks import install
from millpond.daemon.project.importing.get import get, get_url, list_url
from millpond.daemon.project.importing.importrepo import import_ as import_repo
from millpond.daemon.project.importing.importurl import import_url
from millpond.daemon.project.importing.update import update
from millpond.daemon.project.init import init
from millpond.daemon.project.list import du, list_
from millpond.daemon.project.merge import merge
from millpond.daemon.project.move import move
from millpond.daemon.project.purge import purge
from millpond.daemon.project.push import push
from millpond.daemon.project.remotecheck import remote_check
from millpond.daemon.project.remoteconfig import remote
from millpond.daemon.project.remove import remove
from millpond.daemon.project.repo import find_root
from millpond.daemon.project.unprotect import unprotect

Verb = Callable[[Any, dict[str, Any]], dict[str, Any]]


def root(context: VerbContext, params: dict[str, Any]) -> dict[str, Any]:
    """Verb. {} -> {root, relative}: the project's root, absolute and from the caller's folder. Raises NotARepoError."""
    found = find_root(os.getcwd())
    return {
        "root": wirepath.encode(found),
        "relative": wirepath.encode(os.path.relpath(found, os.path.realpath(os.getcwd()))),
    }


VERBS: dict[str, Verb] = {
    "init": init,
    "add": add,
    "checkout": checkout,
    "status": status,
    "status.cloud": cloud_status,
    "root": root,
    "diff": diff,
    "data.status": data_status,
    "commit": commit,
    "remote": remote,
    "remote.check": remote_check,
    "remove": remove,
    "export": export,
    "config": config_verb,
    "cache.dir": cache_dir,
    "cache.evict": evict,
    "cache.import": import_,
    "cache.info": cache_info,
    "cache.verify": verify,
    "cache.make-room": make_room,
    "cache.migrate": migrate,
    "list": list_,
    "look": look,
    "url": url,
    "du": du,
    "move": move,
    "freeze": freeze,
    "check-ignore": check_ignore,
    "unprotect": unprotect,
    "update": update,
    "get": get,
    "get-url": get_url,
    "list-url": list_url,
    "import": import_repo,
    "import-url": import_url,
    "pull": pull,
    "purge": purge,
    "push": push,
    "install": install,
    "merge-driver": merge,
    "fetch": fetch,
    "metrics.show": metrics.show,
    "metrics.diff": metrics.diff,
    "params.diff": paramsdiff.diff,
    "plots": plots.plots,
    "plots.modify": modify.modify,
    "plots.templates": plots.templates,
    "fsck": fsck,
    "gc": gc,
    "pin": pin,
    "unpin": unpin,
    "warm": warm,
    "forget-project": forget_project,
    "stage.list": stage_list,
    "stage.add": stage_add,
    "dag": dag,
    "repro": repro,
    "why": why,
    "lineage": lineage,
    "runs": runs,
    **MOUNT_VERBS,
    **JOB_VERBS,
}
