"""What must hold before tritonserver is started. Each failure says the command that mends it."""

from __future__ import annotations

import errno
import importlib.util
import re
import socket
from importlib.metadata import version
from pathlib import Path

from serving.triton import PYTHON, ServingError, Triton, environment, missing_libraries


def check_triton(triton: Triton) -> None:
    """Checks the server's libraries and the packages that the stand-in backend imports.

    Raises:
        ServingError: one is missing.
    """
    variables = environment(triton)
    for binary in filter(None, (triton.binary, triton.stub)):
        missing = missing_libraries(binary, variables)
        if any(name.startswith("libpython") for name in missing):
            raise ServingError(
                f"the shared library of Python {PYTHON} is not installed, and Triton's Python backend embeds it; "
                f"install it: `apt-get install libpython{PYTHON}`"
            )
        if missing:
            raise ServingError(f"{binary} needs {', '.join(missing)}, which this machine does not have; install them")
    if not triton.has_onnxruntime:
        for package in ("onnxruntime", "numpy"):
            if importlib.util.find_spec(package) is None:
                raise ServingError(f"the stand-in backend needs {package}; run `make install`")


def published_models(repository: Path, triton: Triton) -> list[str]:
    """The models of the repository that have a published version; the others are not served.

    Raises:
        ServingError: there is none, or one would be answered wrongly by this Triton.
    """
    models = []
    for config in sorted(repository.glob("*/config.pbtxt")):
        if any(path.name.isdecimal() and any(path.iterdir()) for path in config.parent.iterdir() if path.is_dir()):
            models.append(config.parent.name)
            text = re.sub("#.*", "", config.read_text(encoding="utf-8"))
            python_model = re.search(r'\bbackend\s*:\s*"python"', text)
            # Seen: with numpy 2 the wheel's Python backend answers tensors of 0 bytes with status OK. The stand-in
            # avoids its conversion; a Python model of somebody else's cannot be trusted to.
            if python_model and triton.is_wheel and int(version("numpy").split(".")[0]) > 1:
                raise ServingError(
                    f"{config.parent.name} is a Python model, and the wheel's Python backend answers empty tensors "
                    f"with numpy {version('numpy')}; install an older one, which Python 3.12 and older have: "
                    "`.venv/bin/pip install 'numpy<2'`"
                )
    if not models:
        raise ServingError(
            f"{repository} holds no published model; publish one with `python -m export`, or give --repository"
        )
    return models


def check_ports(address: str, ports: dict[str, int]) -> None:
    """Checks that nobody listens on the ports yet. (Triton itself would share a taken gRPC port in silence.)

    Args:
        ports: port by the option that names it.

    Raises:
        ServingError: one is taken, or the address is not this machine's.
    """
    if len(set(ports.values())) < len(ports):
        raise ServingError(f"the ports must differ, they are {', '.join(f'{k} {v}' for k, v in ports.items())}")
    for option, port in ports.items():
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as exc:
                if exc.errno == errno.EADDRINUSE:
                    raise ServingError(
                        f"port {port} on {address} is taken; stop what listens there (`ss -ltnp 'sport = :{port}'` "
                        f"names it), or give another {option}"
                    ) from exc
                raise ServingError(
                    f"cannot listen on {address}, port {port}: {exc.strerror}; give another {option}"
                ) from exc
