"""Whether this process may still open the file descriptors that gRPC needs.

gRPC aborts the whole process if it cannot open its own when it is used for the first time, and Python cannot import its
parts. A web server that has run out of descriptors should get an error instead.
"""

import contextlib
import os

from clickbert.errors import ConnectionFailedError

NEEDED = 8  # pipes: 16 descriptors; gRPC opens three at its first use, one for a connection, and a few meanwhile


def check_descriptors(where: str) -> None:
    """Raise `ConnectionFailedError` if there are too few to open a channel."""
    with contextlib.ExitStack() as opened:
        try:
            for _ in range(NEEDED):
                for descriptor in os.pipe():
                    opened.callback(os.close, descriptor)
        except OSError as exc:
            raise ConnectionFailedError(
                f"{where}: this process has no file descriptors left for a connection ({exc.strerror}): raise"
                " `ulimit -n`, or close what it has open"
            ) from exc
