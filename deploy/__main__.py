"""Runs the parts of a rollout: each command has its own `--help`.

python -m deploy gateway --secrets DIR --triton HOST:PORT --triton HOST:PORT
python -m deploy fetch s3://BUCKET/PREFIX DIR
python -m deploy canary --stable-metrics HOST:PORT --canary-metrics HOST:PORT
python -m deploy stack --repository model_repository
python -m deploy dashboard --prometheus http://127.0.0.1:9090 --output page.html
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence

# A command's module has `main`, which takes the words behind the command and returns the exit code.
COMMANDS = {
    "gateway": "deploy.gateway.run",
    "fetch": "deploy.fetch.run",
    "canary": "deploy.canary.run",
    "stack": "deploy.stack.run",
    "dashboard": "deploy.monitoring.page",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: the command's own, or 2 where there is no such command."""
    name, *words = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    if name not in COMMANDS:
        print(f"deploy: there is no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return int(importlib.import_module(COMMANDS[name]).main(words))


if __name__ == "__main__":
    code = main()
    # Python's end takes its handlers away first; a further signal would then put its exit code in place of this one.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    sys.exit(code)
