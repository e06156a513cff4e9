"""What is computed here, a published version or a checkpoint, as the transports see it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clickbert.errors import InvalidInputError, ProtocolError
from clickbert.in_process.pieces import Cut
from clickbert.wire.protocol import TOKENIZER_MODEL, Array, InferResponse, ModelDescription, read_release

# Computes outputs by their names; the inputs are those of a packed request, each [elements], the outputs [rows, size].
Compute = Callable[[Mapping[str, Array], tuple[str, ...]], Mapping[str, Array]]


@dataclass(frozen=True)
class Model:
    """A click model that this process computes."""

    path: Path
    name: str
    version: str
    description: ModelDescription
    tokenizer: Mapping[str, Array]  # what `clickbert_tokenizer` answers
    cut: Cut
    threads: int | None  # that compute at a time; None: as many as cores
    open: Callable[[], Compute]  # called in the process that computes

    def check(self) -> None:
        """Raise `InvalidInputError` if the tokenizer or a limit is unusable, or they do not fit the model."""
        answer = InferResponse(self.version, self.tokenizer)
        try:
            read_release(answer, self.version, self.description, f"{TOKENIZER_MODEL} of {self.path}")
        except ProtocolError as exc:
            raise InvalidInputError(str(exc)) from exc
