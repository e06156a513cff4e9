"""Runs the app on uvicorn, for `clickbert serve`."""

import copy
import math
import signal
import sys
from typing import Any

try:
    import uvicorn
except ImportError as exc:
    raise ImportError(
        "clickbert serve needs uvicorn, which comes with an extra: pip install 'clickbert[http]'"
    ) from exc

from clickbert.channels.addresses import is_loopback
from clickbert.http.app import make_app
from clickbert.http.settings import Settings


def serve(settings: Settings, host: str, port: int) -> int:
    """Serve until a signal comes; returns the exit status.

    After SIGTERM no connection is taken any more, and calls that are in flight are answered: 0. After Ctrl-C likewise,
    and `KeyboardInterrupt` is raised.
    """
    if settings.token is None and not is_loopback(f"[{host}]:{port}" if ":" in host else f"{host}:{port}"):
        print(
            f"clickbert: other machines can reach {host}, and callers need no token: set CLICKBERT_HTTP_TOKEN, or have"
            " a gateway in front that asks for one",
            file=sys.stderr,
        )
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(settings),
            host,
            port,
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="on",
            log_config=_log_config(),
            timeout_graceful_shutdown=math.ceil(settings.timeout) + 1,  # a call's last moment is its answer's
        )
    )
    # At its end uvicorn raises the signal once more, for whoever had it before.
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server.run()
    except SystemExit:  # the address cannot be listened on, and uvicorn has said why
        return 1
    return 0


def _log_config() -> dict[str, Any]:
    """Return uvicorn's own, with this package's warnings beside it."""
    config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    config["loggers"]["clickbert"] = config["loggers"]["uvicorn"]
    return config
