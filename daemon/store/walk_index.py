"""Run as a program of its own: read every key of an index. Ends with 0 if that works.

LMDB has no checksums, and a damaged page may end the process that reads it (an assertion, SIGBUS): so this one is spent on
it. Nobody may write the index meanwhile.
"""

from __future__ import annotations

import sys

import lmdb

# The exit status that tells of damage; a signal tells of it too.
DAMAGED = 3


def walk(path: str) -> int:
    """How many keys there are, in all databases. Raises lmdb.Error."""
    count = 0
    with lmdb.open(path, readonly=True, lock=False, create=False, max_dbs=64) as env, env.begin(buffers=True) as txn:
        with txn.cursor() as names:
            found = [bytes(name) for name in names.iternext(values=False)]
        for name in found:
            with txn.cursor(db=env.open_db(name, txn=txn, create=False)) as cursor:
                for _ in cursor.iternext(keys=True, values=False):
                    count += 1
    return count


if __name__ == "__main__":
    try:
        walk(sys.argv[1])
    except lmdb.Error as error:
        print(error, file=sys.stderr)
        sys.exit(DAMAGED)
