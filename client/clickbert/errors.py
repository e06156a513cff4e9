"""Every error of this package, and the one map that turns Triton's and gRPC's errors into them.

    ClickBertError
    ├── InvalidInputError (also a ValueError)   the call is wrong, or not for this model: nothing was computed
    ├── RankerClosedError                       the ranker was closed before or during the call
    └── ServerError                             the server failed in a way that has no class of its own
        ├── ConnectionFailedError               nothing answers there, it is no gRPC port, or TLS or a proxy fails
        ├── ServerTimeoutError                  the deadline passed, here or in the server's queue
        ├── ServerOverloadedError               it is busy: the answer would come too late. Nothing was computed
        ├── ServerUnavailableError              the server drains, or loads or unloads the model: a passing state
        ├── AuthenticationError                 the server or a gateway wants a token, or refuses the one sent
        ├── PermissionDeniedError               the token is valid, but not for this call
        ├── ModelNotFoundError                  the server has no such model, or no such version of it
        └── ProtocolError                       the answer is not what a ClickBERT model on Triton answers

The gRPC status alone does not tell these apart. Triton answers UNAVAILABLE for a full queue, for a request that
expired in the queue, for a missing protocol key and for a model that is loading, and gRPC itself uses UNAVAILABLE
for a refused connection. A model that is being unloaded is NOT_FOUND, as if its name was wrong. So `from_status` looks
at the message first, the status second.

Each rule of that map also says whether to send the same request again at once, perhaps to another server, is safe and
useful: `error.is_retryable`. The client does so itself, a few times (`clickbert.calls.retries`).
"""

from typing import NamedTuple


class ClickBertError(Exception):
    """Base of all errors of this package. No message holds a text of the caller's."""

    is_retryable = False  # whether the same request may be answered at once if it is sent again


class InvalidInputError(ClickBertError, ValueError):
    """The arguments are wrong, or ask for a head that the model does not have. Nothing was computed."""


class RankerClosedError(ClickBertError):
    """The ranker was closed before the call or while it ran."""


class ServerError(ClickBertError):
    """The server could not answer. Raised itself when no subclass says it better."""


class ConnectionFailedError(ServerError):
    """Nothing listens at the address, its name is unknown, it does not speak gRPC, or TLS or a proxy fails."""


class ServerTimeoutError(ServerError):
    """The call's deadline passed, or the request waited too long in the server's queue."""


class ServerOverloadedError(ServerError):
    """The server's queue is full, or the answer would come after the call's deadline.

    Nothing was computed; try again after a pause.
    """


class ServerUnavailableError(ServerError):
    """The server answers, but does not serve the model right now: it drains, or loads or unloads the model.

    Nothing is wrong with the call. Try another server at once, or this one later.
    """


class AuthenticationError(ServerError):
    """The server or a gateway in front of it wants a token that was not sent, or refuses the one that was."""


class PermissionDeniedError(ServerError):
    """The token is valid, but not for this call.

    A gateway says so. Triton itself does not tell it from a wrong token, which is an `AuthenticationError`.
    """


class ModelNotFoundError(ServerError):
    """The server does not have the model, or the version asked for."""

    is_version = False  # whether Triton says that of a version


class ProtocolError(ServerError):
    """The answer breaks the contract: not a Triton server, not a ClickBERT model, or a damaged answer."""


class _Rule(NamedTuple):
    error: type[ServerError]
    next_step: str
    fragments: tuple[str, ...] = ()  # any of these in the message, lower case
    statuses: tuple[str, ...] = ()  # any of these gRPC status names
    retry: bool = False  # what the cause says of `is_retryable`
    next_step_with_tls: str = ""  # where it is another one


_GRPC_PORT = "check that the server runs and that the address is its gRPC port (8001 by default)"
_ONE_OF_SEVERAL = (
    f"{_GRPC_PORT}; a name may have several addresses, and gRPC tells what one of them said: write 127.0.0.1 in place"
    " of localhost to see what that one says"
)
_HTTP_PORT = (
    "what listens there does not speak plain gRPC: use Triton's gRPC port (8001 by default), not HTTP (8000);"
    " if it wants TLS, write grpcs:// in front of the address"
)
_NO_TLS = (
    "what listens there does not speak TLS: leave grpcs:// out for plain gRPC, or use the port of the gateway that does"
)
_PROXY = (
    "the call went to the proxy that the environment variable {} names: check it, or add the host to no_grpc_proxy to"
    " connect without it"
)
_TOKEN = "the server, or the gateway in front of it, wants a valid `token` (for the command, CLICKBERT_TOKEN)"
_RESTRICTED = (
    "Triton restricts this call to those who send the header that it names (--grpc-restricted-protocol). This client"
    " sends its `token` (for the command, CLICKBERT_TOKEN) as triton-grpc-protocol-clickbert-token: pass the one that"
    " the server has, or call through a gateway"
)
_PERMISSION = "ask for a token that allows this call, or make it on a port or a gateway that does"
_CLIENT_CERTIFICATE = (
    "the server closed the connection as soon as TLS was agreed on: it may want a client certificate"
    " (`certificate_file` and `key_file`), or not trust this one; see its log"
)
_LATER = (
    "the server is draining, or loading or unloading the model: try another server, or this one later; if it stays so,"
    " see the server's log"
)
_REPOSITORY = "check the model's name and the server's log, or list the models with Triton's repository index"

# First match wins: messages before statuses, because one status stands for many causes.
_RULES = (
    _Rule(
        ServerOverloadedError,
        "try again later or add a server",
        (
            "exceeds maximum queue size",
            "overloaded: the answer would take",
            "reset reason: overflow",  # Envoy's circuit breaker, and its limit of the rate
            "local_rate_limited",
        ),
    ),
    _Rule(
        ServerTimeoutError,
        "the server is busy: try again later or send fewer documents",
        ("request timeout expired", "request timeout dynamicbatch", "upstream request timeout"),  # the last is Envoy's
    ),
    _Rule(AuthenticationError, _RESTRICTED, ("is restricted, expecting header",)),
    # Before the rule of unknown models: most of Triton's messages for this begin with the words of that rule.
    _Rule(
        ServerUnavailableError,
        _LATER,
        (
            "has no available versions",
            "is not at ready state",
            "is not ready",
            "server not ready",
            "server is stopping",
            "no healthy upstream",  # Envoy's, and the next one
            "upstream connect error or disconnect/reset before headers",
            "is not healthy",  # the process of a backend, which died or hangs
        ),
        retry=True,
    ),
    _Rule(ModelNotFoundError, _REPOSITORY, ("request for unknown model", "not found in any")),
    # Before the rule of handshakes in general: these say so, too.
    _Rule(ConnectionFailedError, _NO_TLS, ("wrong_version_number", "handshake read failed (socket closed)")),
    _Rule(
        ConnectionFailedError,
        "the TLS certificate is not valid for this host name: use a name that is in it",
        ("hostname verification check failed",),
    ),
    _Rule(
        ConnectionFailedError,
        "the server's TLS certificate is not trusted: pass its authority's as `ca_file` (--ca-file), or renew it if it"
        " expired",
        ("certificate_verify_failed",),
    ),
    _Rule(
        ConnectionFailedError,
        "TLS could not be agreed on: see the server's log",
        ("handshake failed", "handshake failure", "certificate"),
    ),
    _Rule(ConnectionFailedError, _HTTP_PORT, ("failed parsing http/2", "http1.x server")),
    # So does Triton's own HTTP port end it, one that wants a client certificate, and a server that dies just now.
    _Rule(
        ConnectionFailedError,
        _HTTP_PORT,
        ("connect to all addresses; last error: unavailable",),
        retry=True,
        next_step_with_tls=_CLIENT_CERTIFICATE,
    ),
    # Of localhost, gRPC may tell that ::1 refused, whatever 127.0.0.1 said.
    _Rule(ConnectionFailedError, _ONE_OF_SEVERAL, ("all addresses; last error: unknown: ipv6:",), retry=True),
    _Rule(ConnectionFailedError, "see the proxy's log", ("http proxy returned",)),
    # Names may go with their servers, as a container's does; another address may be tried.
    _Rule(
        ConnectionFailedError,
        "check the host name in the address",
        ("errors resolving", "dns resolution"),
        retry=True,
    ),
    _Rule(
        ServerTimeoutError,
        f"allow a longer timeout; if nothing ever answers, {_GRPC_PORT}",
        statuses=("DEADLINE_EXCEEDED",),
    ),
    _Rule(AuthenticationError, _TOKEN, statuses=("UNAUTHENTICATED",)),
    _Rule(PermissionDeniedError, _PERMISSION, statuses=("PERMISSION_DENIED",)),
    _Rule(ModelNotFoundError, _REPOSITORY, statuses=("NOT_FOUND",)),
    # A server that ends cancels what it has not answered.
    _Rule(ServerUnavailableError, _LATER, statuses=("CANCELLED",), retry=True),
    _Rule(ProtocolError, "a gRPC server answers there, but not a Triton server", statuses=("UNIMPLEMENTED",)),
    _Rule(ProtocolError, "the answer is not a message of Triton's", ("exception deserializing response",)),
    _Rule(ProtocolError, "a message is larger than the server allows", ("larger than max",)),
    _Rule(ServerOverloadedError, "try again later or send less", statuses=("RESOURCE_EXHAUSTED",)),
    _Rule(ConnectionFailedError, _GRPC_PORT, statuses=("UNAVAILABLE",), retry=True),
    _Rule(
        ProtocolError,
        "the server refused the request: check that the model is a ClickBERT model",
        statuses=("INVALID_ARGUMENT", "OUT_OF_RANGE", "FAILED_PRECONDITION"),
    ),
)

_CLOSED_HERE = ("channel closed", "channel is closed")  # gRPC's own words, of its two kinds of channels


def from_status(
    status: str, message: str, *, where: str, proxy: str | None = None, tls: bool = False
) -> ClickBertError:
    """Return the error for a gRPC failure; the caller raises it `from` the original.

    `status` is gRPC's name ("StatusCode.UNAVAILABLE" or "UNAVAILABLE"), `message` its details. For the text, `where`
    says the model and the address, `proxy` the environment variable with the proxy that the call went through, and
    `tls` whether TLS was spoken.
    """
    code, text = status.removeprefix("StatusCode."), message.lower()
    if code == "CANCELLED" and any(words in text for words in _CLOSED_HERE):
        return RankerClosedError(f"{where}: the ranker was closed while the call ran")
    for rule in _RULES:
        if code in rule.statuses or any(fragment in text for fragment in rule.fragments):
            next_step = (tls and rule.next_step_with_tls) or rule.next_step
            if proxy and (rule.error is ConnectionFailedError or code == "DEADLINE_EXCEEDED"):
                next_step = f"{_PROXY.format(proxy)}; if the proxy works, {next_step}"
            error = rule.error(f"{where}: {message} [{code}]; {next_step}")
            error.is_retryable = rule.retry
            if isinstance(error, ModelNotFoundError):
                error.is_version = "' version " in text  # of a model it says: unknown model: 'x' is not found
            return error
    return ServerError(f"{where}: {message} [{code}]; see the server's log")
