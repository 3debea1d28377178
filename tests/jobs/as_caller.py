"""`python -m tests.jobs.as_caller SOCKET`: requests from standard input, one JSON list [method, params] a line, answers out.

Run under another uid than the daemon's, to be another caller.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from millpond.daemon.errors import MillpondError
from millpond.daemon.rpc.client import Client

with Client.connect(Path(sys.argv[1])) as client:
    for line in sys.stdin:
        method, params = json.loads(line)
        try:
            answer = {"result": client.call(method, params)[0]}
        except MillpondError as error:
            answer = {"error": error.to_wire()}
        print(json.dumps(answer), flush=True)
