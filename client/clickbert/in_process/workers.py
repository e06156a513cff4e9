"""The threads that compute, and the graph that they share: started and opened by the first request of a process.

A child of a fork has neither: it starts its own threads, and opens the graph anew. A lock inside ONNX Runtime may have
been held at the fork, so the parent's graph is put aside there, not used.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from clickbert.channels import forks
from clickbert.errors import ClickBertError, RankerClosedError, ServerError
from clickbert.in_process.model import Compute, Model
from clickbert.in_process.pieces import Outputs, Piece


class Workers:
    """Computes pieces of requests, the first one first, as many at a time as the model has threads."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._lock, self._opening = forks.Lock(), forks.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._compute: Compute | None = None
        self._parents: list[object] = []
        self._closed = False
        forks.watch(self)

    @property
    def closed(self) -> bool:
        """Whether nothing is computed any more."""
        return self._closed

    def closed_error(self) -> RankerClosedError:
        """Return the error of a call that came too late, or was in the queue."""
        return RankerClosedError(f"the ranker on {self._model.path} was closed: make a new one")

    def submit(self, pieces: Sequence[Piece]) -> list[Future[Outputs]]:
        """Have pieces computed; a future that is cancelled before its turn is not. Raises `RankerClosedError`."""
        with self._lock:
            if self._closed:
                raise self.closed_error()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._model.threads or _cores(), thread_name_prefix="clickbert-compute")
            return [self._pool.submit(self._run, piece) for piece in pieces]

    def close(self) -> None:
        """Compute nothing more: what has begun is finished, and what waits is cancelled."""
        with self._lock:
            self._closed = True
            pool, self._pool, self._compute = self._pool, None, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def before_fork(self, *, calls: bool) -> bool:
        """Nothing: gRPC has no part in this."""
        return True

    def after_fork_in_child(self) -> None:
        """Put the parent's threads and graph aside."""
        self._parents.append((self._pool, self._compute))
        self._pool = self._compute = None

    def _run(self, piece: Piece) -> Outputs:
        try:
            with self._opening:
                if self._closed:
                    raise self.closed_error()
                compute = self._compute
                if compute is None:
                    compute = self._compute = self._model.open()
            return compute(piece.inputs, piece.outputs)
        except ClickBertError:
            raise
        except Exception as exc:  # those of ONNX Runtime and PyTorch have no class of their own
            raise ServerError(f"{self._model.path}: a request cannot be computed: {exc}") from exc


def _cores() -> int:
    """Return how many cores this process may use at a time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
