"""The service of flask_service.py on gevent: one thread, in which any number of searches wait at once.

Three steps, in this order, before the first call:

1. gevent patches the standard library, before anything else is imported.
2. `clickbert` is imported (here by flask_service), before any other package imports grpc.
3. gRPC hands its waiting to gevent. Without this step nothing fails, but gRPC waits in C, where gevent cannot see it:
   each call stops the whole process until its answer is there.

    pip install ./client flask gevent gunicorn
    export CLICKBERT_URL=localhost:8001
    gunicorn --chdir examples --worker-class gevent --workers 2 gevent_service:app
    curl localhost:8000/search --json '{"query": "coffee", "documents": ["a bar", "a cafe"], "top_k": 1}'

Use `Ranker`: greenlets take the place of asyncio's tasks, and `AsyncRanker` refuses to work here.
"""

# ruff: noqa: E402
from gevent import monkey

monkey.patch_all()

from flask_service import app  # noqa: F401 (gunicorn's)
from grpc.experimental.gevent import init_gevent

init_gevent()
