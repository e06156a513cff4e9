"""The flags of tritonserver that are always the same, and those that a user may not pass on."""

from __future__ import annotations

from serving.triton import ServingError

# How a load balancer and callers see it while it runs. Flags after `--` may say otherwise.
CONDUCT = (
    # A load in progress, and one that failed, do not make a server "not ready" whose former version answers all the
    # while. Nothing listens before all models are loaded, and one that drains says so.
    "--strict-readiness=false",
    # A caller whose machine vanished is noticed, and so is this one: its callers may ping it every five seconds.
    "--grpc-keepalive-time=20000",
    "--grpc-keepalive-timeout=10000",
    "--grpc-keepalive-permit-without-calls=1",
    "--grpc-http2-max-pings-without-data=0",
    "--grpc-http2-min-recv-ping-interval-without-data=5000",
)
# Flags of tritonserver that follow from this command's own options, or would undo what it closes.
OWN_FLAGS = {
    "--model-store",  # another name of --model-repository
    "--model-config-name",
    *(f"--{each}" for each in ("allow-http", "http-address", "http-port", "http-restricted-api", "allow-grpc")),
    *(f"--grpc-{each}" for each in ("restricted-protocol", "use-ssl", "use-ssl-mutual")),
    *(f"--grpc-{each}" for each in ("server-cert", "server-key", "root-cert")),
}


def refuse_flags(flags: tuple[str, ...], own: list[str]) -> None:
    """Raises ServingError where a flag of the user's would contradict one of the server's own."""
    names = {flag.split("=")[0] for flag in own} | OWN_FLAGS
    if refused := names & {flag.split("=")[0] for flag in flags}:
        raise ServingError(
            f"{', '.join(sorted(refused))} cannot be passed on: `python -m serving` sets it by its own options, and "
            "waits for the server where they say"
        )
