"""The further heads of a jointly trained click model, and how it reads long documents: beside the Hugging Face folder.

`config.json` and `model.safetensors` are a plain `BertForSequenceClassification`, which any tool loads. What it does
not know lies in two files of this project: `clickbert.json` (`HeadSettings`) and `heads.safetensors` (the weights).
A checkpoint without them has no further heads and reads long documents cut off.

All heads read the hidden state of [CLS] after the last layer, which is computed for the click anyway.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from finetune.checkpoint.files import HEAD_SETTINGS, HEAD_WEIGHTS, CheckpointError
from finetune.names import AGGREGATES, ATTENTION
from release.names import EMBEDDING, PASSAGE_LOGITS, TOPIC_LOGITS
from release.records import RecordError, read_record, to_json

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Passages:
    """How a document beyond the encoder's limit is read: in passages, each scored beside the user text.

    The document's logit is, by `aggregate`: "max", the highest of its passages' logits; "mean", the mean of the `best`
    highest (of all, if it has fewer); "attention", the mean weighted by the softmax of their `passage_logits`.
    """

    aggregate: str
    overlap: int  # tokens that a passage shares with the one before
    best: int = 1  # for "mean"


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """What a checkpoint has beside the click. `topics` are the names in the order of `topic_logits`."""

    topics: tuple[str, ...] = ()
    several_topics: bool = False  # a text may have several: each has its own sigmoid; False: one softmax
    embedding_size: int = 0  # 0: no embedding
    passages: Passages | None = None  # None: long documents are cut
    schema: int = SCHEMA


class Heads(nn.Module):
    """The heads that `settings` ask for, on hidden states of [CLS]."""

    def __init__(self, settings: HeadSettings, hidden_size: int) -> None:
        super().__init__()
        self.settings = settings
        attention = settings.passages is not None and settings.passages.aggregate == ATTENTION
        self.topic = nn.Linear(hidden_size, len(settings.topics)) if settings.topics else None
        self.embedding = nn.Linear(hidden_size, settings.embedding_size) if settings.embedding_size else None
        self.passage = nn.Linear(hidden_size, 1) if attention else None

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of its outputs, in the order of `release.names.HEAD_OUTPUTS`."""
        heads = ((self.topic, TOPIC_LOGITS), (self.embedding, EMBEDDING), (self.passage, PASSAGE_LOGITS))
        return tuple(name for head, name in heads if head is not None)

    def forward(self, first: Tensor) -> dict[str, Tensor]:
        """Hidden states of [CLS] [texts, hidden] -> outputs by name, [texts, topics], [texts, size] and [texts, 1].

        An embedding has length 1, so that a product of two is their cosine.
        """
        result = {}
        if self.topic is not None:
            result[TOPIC_LOGITS] = self.topic(first)
        if self.embedding is not None:
            result[EMBEDDING] = functional.normalize(self.embedding(first), dim=1)
        if self.passage is not None:
            result[PASSAGE_LOGITS] = self.passage(first)
        return result


def read_heads(folder: Path, hidden_size: int) -> Heads:
    """Read a checkpoint's heads; of a plain Hugging Face folder, heads without any output.

    Raises:
        CheckpointError: a file is damaged, of another release, or the two do not fit each other or the model.
    """
    path, weights = folder / HEAD_SETTINGS, folder / HEAD_WEIGHTS
    if not path.exists():
        if weights.exists():
            raise CheckpointError(f"{folder}: has {HEAD_WEIGHTS} but no {HEAD_SETTINGS}; copy the whole folder")
        return Heads(HeadSettings(), hidden_size)
    try:
        settings = read_record(HeadSettings, path, SCHEMA)
    except RecordError as error:
        raise CheckpointError(f"{error}; copy the checkpoint again, or fine-tune it again") from error
    _check(settings, path)
    heads = Heads(settings, hidden_size)
    if heads.outputs:
        try:
            heads.load_state_dict(load_file(weights))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{weights}: does not hold the heads that {HEAD_SETTINGS} names ({error}); copy the whole folder"
            ) from error
    if not all(bool(torch.isfinite(weight).all()) for weight in heads.state_dict().values()):
        raise CheckpointError(f"{weights}: a weight is NaN or infinite; use an earlier checkpoint")
    return heads.eval()


def write_heads(heads: Heads, folder: Path) -> None:
    """Write both files into a checkpoint's folder; none if there is nothing to say.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    if heads.settings == HeadSettings():
        return
    (folder / HEAD_SETTINGS).write_bytes(to_json(heads.settings))
    if heads.outputs:
        weights = {name: weight.detach().float().contiguous() for name, weight in heads.state_dict().items()}
        save_file(weights, folder / HEAD_WEIGHTS)


def _check(settings: HeadSettings, path: Path) -> None:
    passages = settings.passages
    if passages and (passages.aggregate not in AGGREGATES or passages.best < 1 or passages.overlap < 0):
        raise CheckpointError(f"{path}: {passages} is not usable; aggregate is one of {', '.join(AGGREGATES)}")
    if len(settings.topics) == 1:
        raise CheckpointError(f"{path}: has the topic {settings.topics[0]!r} alone, and it takes two to tell one")
    if settings.embedding_size < 0 or len(set(settings.topics)) < len(settings.topics):
        raise CheckpointError(f"{path}: a topic stands twice, or embedding_size is negative; fine-tune it again")
