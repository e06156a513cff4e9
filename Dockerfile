# syntax=docker/dockerfile:1
# Serves a model repository that is mounted at /models.
#
#   docker build --target cpu --tag clickbert-serving:cpu .
#   docker run --rm --publish 127.0.0.1:8000-8002:8000-8002 --volume "$PWD/model_repository:/models:ro" \
#       clickbert-serving:cpu
#
# The cpu target runs the Triton of the nvidia-pytriton wheel. It is 2.51.0, so publish its ports to this machine or to
# a pod's other containers only, never to a network.
#
#   docker build --target gpu --tag clickbert-serving:gpu \
#       --build-arg TRITON_IMAGE=<NVIDIA's registry>/nvidia/tritonserver:26.08-py3 .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" --publish 127.0.0.1:8000-8002:8000-8002 \
#       --volume "$PWD/model_repository:/models" clickbert-serving:gpu
#
# The gpu target is NVIDIA's Triton, with its C++ backends. Before it serves, it builds the TensorRT plans that are
# missing, or do not fit the GPU that it starts on, into the mounted repository: that takes minutes, once.

# NVIDIA's image, by its full name in NVIDIA's registry (NGC) or in a mirror of it; the host is not written here.
# Release 26.08 has TensorRT 11.2.1.2, CUDA 13.4.1 and Python 3.12. (26.07 has TensorRT 11.1.0.106, 26.06 11.0.0.114;
# up to 26.04 it was TensorRT 10.) The bindings in the dependency group `plan` of pyproject.toml are pinned to the same
# TensorRT: exchange both together.
ARG TRITON_IMAGE=nvidia/tritonserver:26.08-py3

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
COPY release ./release
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

FROM ${TRITON_IMAGE} AS plan-packages
WORKDIR /app
COPY pyproject.toml constraints.txt ./
# Into a folder of their own, by the image's own Python: its packages stay as they are. (--group needs a newer pip than
# the image may have.)
RUN python3 -m pip install --no-cache-dir --target /app/pip pip==26.3 \
    && PYTHONPATH=/app/pip python3 -m pip install --no-cache-dir --constraint constraints.txt --group plan \
        --target /app/packages

FROM ${TRITON_IMAGE} AS gpu
# The image's default user is root.
RUN useradd --system --uid 10001 --no-create-home clickbert
WORKDIR /app
COPY --from=plan-packages /app/packages ./packages
COPY finetune ./finetune
COPY export ./export
COPY release ./release
COPY serving ./serving
ENV PYTHONPATH=/app/packages PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# It must be able to write into /models: plans are built there. `docker run --user` gives it the owner's number.
USER 10001
EXPOSE 8000 8001 8002
# Not ready while plans are built.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
STOPSIGNAL SIGTERM
# NVIDIA's script arranges its libraries for the host's driver, and becomes the shell. That is process 1 while plans are
# built, and passes SIGTERM on; then the server takes its place, and its signals. Arguments go to `python3 -m serving`.
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh", "/bin/sh", "-c", "\
    python3 -m export plan --repository /models & plan=$!; \
    trap 'kill -TERM $plan' TERM INT; \
    wait $plan || exit $?; \
    trap - TERM INT; \
    exec python3 -m serving --repository /models --address 0.0.0.0 \"$@\"", "clickbert"]
