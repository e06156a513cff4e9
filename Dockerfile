# syntax=docker/dockerfile:1
# Serves a model repository that is mounted at /models.
#
#   docker build --target cpu --tag clickbert-serving:cpu \
#       --build-arg TRITON_IMAGE=<NVIDIA's registry>/nvidia/tritonserver:26.08-py3 .
#   docker run --rm --publish 127.0.0.1:8000-8002:8000-8002 --volume "$PWD/model_repository:/models:ro" \
#       clickbert-serving:cpu
#
# The cpu target is NVIDIA's Triton with the packages of our backend packed_cpu. No Triton authenticates callers: publish
# its ports to this machine, to a pod, or to a gateway that does. With a read-only root it needs a folder to write and
# execute: `docker run --read-only --tmpfs /tmp:exec`.
#
#   docker build --target gpu --tag clickbert-serving:gpu --build-arg TRITON_IMAGE=<as above> .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" --publish 127.0.0.1:8000-8002:8000-8002 \
#       --volume "$PWD/model_repository:/models" clickbert-serving:gpu
#
# The gpu target is the same, and what builds TensorRT plans: at its start those that are missing, or that do not fit this
# GPU, into the mounted repository. That takes minutes, once.
#
#   docker build --target cpu-slim --tag clickbert-serving:cpu-slim .
#
# The cpu-slim target is small, and needs no registry of NVIDIA's: it runs the Triton of the nvidia-pytriton wheel. It is
# for laptops and tests, never for a network: that Triton is 2.51 (24.10), and those before 25.07 have published holes by
# which a caller runs code of his own (CVE-2025-23310 and -23311 in HTTP's chunked bodies; -23319, -23320 and -23334
# through the Python backend's shared memory).
#
# All stop within 45 seconds: `docker stop --time 45`. Arguments behind the image's name go to `python -m serving`. If
# you give another --http-port or --address there, give --health-cmd the same: `python3 -m serving --health --http-port N`.

# The full name of NVIDIA's image, in NVIDIA's registry (NGC) or a mirror of it. Keep it current, for its security
# updates. Release 26.08 has TensorRT 11.2.1.2, CUDA 13.4.1 and Python 3.12. (26.07 has TensorRT 11.1.0.106, 26.06 has
# 11.0.0.114; up to 26.04 it was TensorRT 10.) The dependency group `plan` in pyproject.toml pins the bindings to the same
# TensorRT: change both together.
ARG TRITON_IMAGE=nvidia/tritonserver:26.08-py3

FROM ${TRITON_IMAGE} AS serving
# The image's default user is root.
RUN useradd --system --uid 10001 --no-create-home clickbert
WORKDIR /app
COPY pyproject.toml constraints.txt ./
# Triton's Python is isolated: it reads no PYTHONPATH, and takes the packages of the `python3` that is first on PATH. So
# they go into a virtual environment, and the image's own stay as they are. (The image may lack ensurepip, and its pip be
# too old for --group.)
RUN python3 -m venv --without-pip /app/.venv \
    && python3 -m pip --python /app/.venv/bin/python3 install --no-cache-dir pip==26.3 \
    && /app/.venv/bin/pip install --no-cache-dir --constraint constraints.txt --group serving
COPY release ./release
COPY serving ./serving
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN python3 -m serving --check
EXPOSE 8000 8001 8002
# Triton first answers what it has accepted, which may take 30 s.
STOPSIGNAL SIGTERM

FROM serving AS cpu
USER 10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-m", "serving", "--health"]
ENTRYPOINT ["python3", "-m", "serving", "--repository", "/models", "--address", "0.0.0.0"]

FROM serving AS gpu
RUN /app/.venv/bin/pip install --no-cache-dir --constraint constraints.txt --group plan
COPY finetune ./finetune
COPY export ./export
# This user must be able to write into /models, because plans are built there: `docker run --user` sets its number.
USER 10001
# While plans are built it is not ready, which may take long.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python3", "-m", "serving", "--health"]
# NVIDIA's script selects libraries that fit the host's driver, and becomes the shell. The shell is process 1 while plans
# are built, and passes SIGTERM on. Then the server takes its place.
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh", "/bin/sh", "-c", "\
    python3 -m export plan --repository /models & plan=$!; \
    trap 'kill -TERM $plan' TERM INT; \
    wait $plan || exit $?; \
    trap - TERM INT; \
    exec python3 -m serving --repository /models --address 0.0.0.0 \"$@\"", "clickbert"]

FROM debian:bookworm-slim AS wheel-packages
# Debian's release pins the versions; a security update must not wait for this file.
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

FROM debian:bookworm-slim AS cpu-slim
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 libpython3.11 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home clickbert
WORKDIR /app
COPY --from=wheel-packages /app/.venv ./.venv
COPY release ./release
COPY serving ./serving
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN python3 -m serving --check
USER 10001
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-m", "serving", "--health"]
ENTRYPOINT ["python3", "-m", "serving", "--repository", "/models", "--address", "0.0.0.0"]
