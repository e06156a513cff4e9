# syntax=docker/dockerfile:1
# Serves a model repository that is mounted at /models.
#
#   docker build --target cpu --tag clickbert-serving:cpu .
#   docker run --rm --publish 127.0.0.1:8000-8002:8000-8002 --volume "$PWD/model_repository:/models:ro" \
#       clickbert-serving:cpu
#
# The cpu target runs the Triton of the nvidia-pytriton wheel. That is 2.51.0, which is old: publish its ports to this
# machine or to the other containers of a pod, never to a network. With a read-only root it needs a folder to write and
# execute: `docker run --read-only --tmpfs /tmp:exec`.
#
#   docker build --target gpu --tag clickbert-serving:gpu \
#       --build-arg TRITON_IMAGE=<NVIDIA's registry>/nvidia/tritonserver:26.08-py3 .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" --publish 127.0.0.1:8000-8002:8000-8002 \
#       --volume "$PWD/model_repository:/models" clickbert-serving:gpu
#
# The gpu target is NVIDIA's Triton with its C++ backends. At its start it builds the TensorRT plans that are missing, or
# that do not fit this GPU, into the mounted repository. That takes minutes, once.
#
# Both stop within 45 seconds: `docker stop --time 45`. Arguments behind the image's name go to `python -m serving`. If
# you give another --http-port or --address there, give --health-cmd the same: `python -m serving --health --http-port N`.

# The full name of NVIDIA's image, in NVIDIA's registry (NGC) or a mirror of it. Release 26.08 has TensorRT 11.2.1.2,
# CUDA 13.4.1 and Python 3.12. (26.07 has TensorRT 11.1.0.106, 26.06 has 11.0.0.114; up to 26.04 it was TensorRT 10.) The
# dependency group `plan` in pyproject.toml pins the bindings to the same TensorRT: change both together.
ARG TRITON_IMAGE=nvidia/tritonserver:26.08-py3

FROM debian:bookworm-slim AS packages
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
    CMD ["python", "-m", "serving", "--health"]
# Triton first answers what it has accepted, which may take 30 s.
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "serving", "--repository", "/models", "--address", "0.0.0.0"]

FROM ${TRITON_IMAGE} AS plan-packages
WORKDIR /app
COPY pyproject.toml constraints.txt ./
# They go into a folder of their own, so that the image's packages stay as they are. (The image's pip may be too old for
# --group.)
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
# This user must be able to write into /models, because plans are built there: `docker run --user` sets its number.
USER 10001
EXPOSE 8000 8001 8002
# While plans are built it is not ready, which may take long.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python3", "-m", "serving", "--health"]
STOPSIGNAL SIGTERM
# NVIDIA's script selects libraries that fit the host's driver, and becomes the shell. The shell is process 1 while plans
# are built, and passes SIGTERM on. Then the server takes its place.
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh", "/bin/sh", "-c", "\
    python3 -m export plan --repository /models & plan=$!; \
    trap 'kill -TERM $plan' TERM INT; \
    wait $plan || exit $?; \
    trap - TERM INT; \
    exec python3 -m serving --repository /models --address 0.0.0.0 \"$@\"", "clickbert"]
