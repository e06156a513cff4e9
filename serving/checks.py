"""Checks of this machine before tritonserver is started. Each error names the command that helps."""

from __future__ import annotations

import errno
import shutil
import socket
import subprocess

from serving.triton import PYTHON, ServingError, Triton, environment, missing_libraries

PACKAGES = ("onnxruntime", "numpy")  # what packed_cpu imports


def check_triton(triton: Triton, needs_python: bool) -> None:
    """Checks the server's libraries and, where models run in its Python, the packages that packed_cpu imports.

    Raises:
        ServingError: one is missing.
    """
    variables = environment(triton, needs_python)
    for binary in filter(None, (triton.binary, triton.stub if needs_python else None)):
        missing = missing_libraries(binary, variables)
        if any(name.startswith("libpython") for name in missing):
            raise ServingError(
                f"the shared library of Python {PYTHON} is not installed, and Triton's Python backend embeds it; "
                f"install it: `apt-get install libpython{PYTHON}`"
            )
        if missing:
            raise ServingError(f"{binary} needs {', '.join(missing)}, which this machine does not have; install them")
    if needs_python:
        check_packages(variables)


def check_packages(variables: dict[str, str]) -> None:
    """Checks the packages of the `python3` that Triton's Python takes its packages from.

    Raises:
        ServingError: one is missing.
    """
    python = shutil.which("python3", path=variables["PATH"])
    found: list[str] = []
    if python:
        look = "import sys; from importlib.util import find_spec; print(*filter(find_spec, sys.argv[1:]))"
        words = [python, "-I", "-c", look, *PACKAGES]  # isolated, as Triton's is
        found = subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()
    if missing := [name for name in PACKAGES if name not in found]:
        raise ServingError(
            f"the packed_cpu backend needs {', '.join(missing)} in the `python3` that is first on PATH, "
            f"{python or 'and there is none'}; run `make install`, or install the dependency group `serving` there"
        )


def check_ports(address: str, ports: dict[str, int]) -> None:
    """Checks that nobody listens on the ports yet. (Triton would silently share a gRPC port with another server.)

    Args:
        ports: port by the option that names it.

    Raises:
        ServingError: one is taken, or the address is not this machine's.
    """
    if len(set(ports.values())) < len(ports):
        raise ServingError(f"the ports must differ, they are {', '.join(f'{k} {v}' for k, v in ports.items())}")
    for option, port in ports.items():
        try:
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise ServingError(
                    f"port {port} on {address} is taken; stop what listens there (`ss -ltnp 'sport = :{port}'` "
                    f"names it), or give another {option}"
                ) from exc
            other = option if exc.errno == errno.EACCES else "--address"
            raise ServingError(
                f"cannot listen on {address}, port {port}: {exc.strerror}; give another {other}"
            ) from exc
