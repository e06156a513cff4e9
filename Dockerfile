# Serves a model repository that is mounted at /models.
#
#   docker build --target cpu --tag clickbert-serving:cpu \
#       --build-arg TRITON_IMAGE=<NVIDIA's registry>/nvidia/tritonserver:26.08-py3 .
#   docker run --rm --publish 127.0.0.1:8001-8002:8001-8002 --volume "$PWD/model_repository:/models:ro" \
#       clickbert-serving:cpu
#
# The cpu target is NVIDIA's Triton with the packages of our backend packed_cpu. Without `--secure` it serves everybody who
# reaches it, in plaintext: publish its ports to this machine, to a pod, or to a gateway. With a folder of certificates
# (`make certs` shows what it holds) add `--volume DIR:/certs:ro`, `--secure /certs` behind the image's name, and
# `--health-cmd "python3 -m serving --health --secure /certs"`. Its keys are readable for their owner alone, and the image's
# user is 10001: add `--user "$(id -u)"`, or give the folder to 10001 (`chown -R`).
#
# A server needs no capability, and of the root nothing but a /tmp that is writable and executable:
#
#   docker run --read-only --tmpfs /tmp:exec --cap-drop all --security-opt no-new-privileges --memory 4g --cpus 2 ...
#
# `make test-container` builds and runs cpu-slim so. No image has a compiler or pip but those that its base brings. Process 1
# is Python (in gpu it begins as NVIDIA's script, and becomes Python); bash must be there all the same, because Triton's
# Python backend starts its processes by it.
#
# A version is loaded by `docker exec CONTAINER python3 -m serving load clickbert_onnx --repository /models`. To withdraw one
# that is newer, it renames folders: for that mount the repository without `:ro`.
#
#   docker build --target gpu --tag clickbert-serving:gpu --build-arg TRITON_IMAGE=<as above> .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" --publish 127.0.0.1:8001-8002:8001-8002 \
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
# you give another --grpc-port or --address there, give --health-cmd the same: `python3 -m serving --health --grpc-port N`.

# The full name of NVIDIA's image, in NVIDIA's registry (NGC) or a mirror of it. Keep it current, for its security
# updates. Release 26.08 has TensorRT 11.2.1.2, CUDA 13.4.1 and Python 3.12. (26.07 has TensorRT 11.1.0.106, 26.06 has
# 11.0.0.114; up to 26.04 it was TensorRT 10.) The dependency group `plan` in pyproject.toml pins the bindings to the same
# TensorRT: change both together.
ARG TRITON_IMAGE=nvidia/tritonserver:26.08-py3

FROM ${TRITON_IMAGE} AS pip
# It is mounted where packages are installed, and so is in no image. `make lock` writes the files in deploy/requirements;
# pip refuses a wheel whose hash does not stand there.
COPY deploy/requirements /pip/requirements
RUN python3 -m pip install --no-cache-dir --require-hashes --target /pip --requirement /pip/requirements/pip.txt

FROM ${TRITON_IMAGE} AS cpu
# The image's default user is root.
RUN useradd --system --uid 10001 --no-create-home clickbert
WORKDIR /app
# Triton's Python is isolated: it reads no PYTHONPATH, and takes the packages of the `python3` that is first on PATH. So
# they go into a virtual environment, and the image's own stay as they are.
RUN --mount=type=bind,from=pip,source=/pip,target=/pip \
    python3 -m venv --without-pip .venv \
    && .venv/bin/python3 /pip/pip install --no-cache-dir --require-hashes --only-binary :all: \
        --requirement /pip/requirements/serving.txt --requirement /pip/requirements/fetch.txt
COPY release ./release
COPY serving ./serving
COPY deploy/__init__.py deploy/__main__.py ./deploy/
COPY deploy/fetch ./deploy/fetch
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
RUN python3 -m serving --check && python3 -m deploy fetch --help > /dev/null
EXPOSE 8001 8002
# Triton first answers what it has accepted, which may take 30 s.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-m", "serving", "--health"]
ENTRYPOINT ["python3", "-m", "serving", "--repository", "/models", "--address", "0.0.0.0"]

FROM cpu AS gpu
USER 0
RUN --mount=type=bind,from=pip,source=/pip,target=/pip \
    .venv/bin/python3 /pip/pip install --no-cache-dir --require-hashes --only-binary :all: \
        --requirement /pip/requirements/plan.txt
COPY finetune ./finetune
COPY export ./export
# This user must be able to write into /models, because plans are built there: `docker run --user` sets its number.
USER 10001
# While plans are built it is not ready, which may take long.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python3", "-m", "serving", "--health"]
# NVIDIA's script selects libraries that fit the host's driver, and becomes the command behind it. That builds plans, and
# then becomes the server.
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh", \
    "python3", "-m", "export", "plan", "--repository", "/models", "--", \
    "python3", "-m", "serving", "--repository", "/models", "--address", "0.0.0.0"]

FROM debian:bookworm-slim AS slim-pip
# Debian's release pins the versions; a security update must not wait for this file.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-pip \
    && rm -rf /var/lib/apt/lists/*
COPY deploy/requirements /pip/requirements
RUN python3 -m pip install --no-cache-dir --require-hashes --target /pip --requirement /pip/requirements/pip.txt

# What NVIDIA's image brings comes from Debian and from the wheel. All the rest is the cpu target's, line by line, and a
# test compares the two: so what is tested in this image is what runs in the others.
FROM debian:bookworm-slim AS cpu-slim
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 libpython3.11 \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --no-create-home clickbert
WORKDIR /app
RUN --mount=type=bind,from=slim-pip,source=/pip,target=/pip \
    python3 -m venv --without-pip .venv \
    && .venv/bin/python3 /pip/pip install --no-cache-dir --require-hashes --only-binary :all: \
        --requirement /pip/requirements/serving.txt --requirement /pip/requirements/fetch.txt
RUN --mount=type=bind,from=slim-pip,source=/pip,target=/pip \
    .venv/bin/python3 /pip/pip install --no-cache-dir --require-hashes --only-binary :all: --no-deps \
        --requirement /pip/requirements/triton-wheel.txt
COPY release ./release
COPY serving ./serving
COPY deploy/__init__.py deploy/__main__.py ./deploy/
COPY deploy/fetch ./deploy/fetch
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
RUN python3 -m serving --check && python3 -m deploy fetch --help > /dev/null
EXPOSE 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-m", "serving", "--health"]
ENTRYPOINT ["python3", "-m", "serving", "--repository", "/models", "--address", "0.0.0.0"]

# The gateway in front of two or more: deploy/gateway/README.md, and deploy/compose has it beside its servers. Its folder of
# secrets is mounted, and readable for the user that `docker run --user` names.
FROM debian:bookworm-slim AS gateway
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --no-create-home clickbert
WORKDIR /app
RUN --mount=type=bind,from=slim-pip,source=/pip,target=/pip \
    python3 -m venv --without-pip .venv \
    && .venv/bin/python3 /pip/pip install --no-cache-dir --require-hashes --only-binary :all: \
        --requirement /pip/requirements/gateway.txt
COPY release ./release
COPY deploy/__init__.py deploy/__main__.py ./deploy/
COPY deploy/gateway ./deploy/gateway
COPY deploy/canary ./deploy/canary
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
RUN envoy --version && python3 -m deploy gateway --help > /dev/null
EXPOSE 8443 9902
# First it drains, which may take 35 s.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9901/ready', timeout=4)"]
ENTRYPOINT ["python3", "-m", "deploy", "gateway"]
