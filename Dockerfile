# syntax=docker/dockerfile:1
# Serves a model repository that is mounted at /models.
#
#   docker build --target cpu --tag clickbert-serving:cpu .
#   docker run --rm --publish 127.0.0.1:8000-8002:8000-8002 --volume "$PWD/model_repository:/models:ro" \
#       clickbert-serving:cpu
#
# The cpu target runs the Triton of the nvidia-pytriton wheel. It is 2.51.0, so publish its ports to this machine or to
# a pod's other containers only, never to a network.

FROM debian:bookworm-slim AS packages
# Debian's pins are its release; a security update must not wait for this file.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml constraints.txt ./
RUN python3 -m venv /app/.venv \
    && /app/.venv/bin/pip install --no-cache-dir pip==26.3 \
    && /app/.venv/bin/pip install --no-cache-dir --constraint constraints.txt --group serving \
    && /app/.venv/bin/pip install --no-cache-dir --no-deps --group triton-wheel

FROM debian:bookworm-slim AS cpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 libpython3.11 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home triton
WORKDIR /app
COPY --from=packages /app/.venv ./.venv
COPY serving ./serving
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m serving --check
USER 10001
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
# Triton answers what it accepted before it ends (up to 30 s); give it that long: docker stop --time 45.
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "serving", "--repository", "/models", "--address", "0.0.0.0"]
