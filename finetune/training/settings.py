"""How to fine-tune: every choice, with its default and its help, in one place. The command's options follow from it."""

import argparse
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from finetune.names import AGGREGATES, ATTENTIONS, ESTIMATED, NONE, UNDERSTANDING, USER_ONCE

CLICK, PAIRWISE, LISTWISE = OBJECTIVES = ("click", "pairwise", "listwise")
LEARNED = "learned"
CHOOSE = "choose"
FULL, LORA, ADALORA, IA3, PREFIX = METHODS = ("full", "lora", "adalora", "ia3", "prefix")
PRECISIONS = ("fp32", "bf16", "fp16")


LEAST = {
    "epochs": 1, "batch_size": 1, "accumulate": 1, "rank": 1, "evaluations": 1, "patience": 1, "embedding_size": 1,
    "passage_best": 1, "passage_overlap": 0, "layers": 1,
}  # fmt: skip


class SettingsError(ValueError):
    """Raised for settings that contradict each other or the data; the message names the option."""


def _option(default: Any, text: str, **parse: Any) -> Any:
    """A field that is an option of the command: its default, its help, and how argparse reads it."""
    value: dict[str, Any] = {"default_factory": default} if callable(default) else {"default": default}
    return field(**value, metadata={"help": text, "parse": parse})


@dataclass(frozen=True)
class TrainSettings:
    """How to fine-tune. A field is an option: `batch_size` is --batch-size. None means: by objective, or by base."""

    objective: str = _option(CLICK, "what is minimised: by row, by pair, by list", choices=OBJECTIVES)
    understanding: tuple[str, ...] = _option(
        tuple, "learn beside the click: topics of documents, similarity of texts", nargs="+", choices=UNDERSTANDING
    )
    understanding_weight: tuple[str, ...] = _option(
        lambda: ("0.2",), f'weight beside the click\'s 1, one for all or one each; or "{LEARNED}" by uncertainty',
        nargs="+", metavar="W",
    )  # fmt: skip
    attention: str | None = _option(
        None, f"which tokens see which: {USER_ONCE} is served faster, as a user text is computed once for all "
        "candidates; default: full, or what the base was fine-tuned with", choices=ATTENTIONS,
    )  # fmt: skip
    full_first: float = _option(
        0.5, f"of {USER_ONCE}: share of the steps that learn with full attention, before the others", type=float
    )
    embedding_size: int = _option(128, "length of the similarity head's embedding", type=int)
    position_bias: str = _option(NONE, f'"{NONE}", "{ESTIMATED}", or a JSON file of odds by position', metavar="BIAS")
    passages: str = _option(
        NONE, f"read long documents in passages, aggregated so; {CHOOSE}: whichever is best on dev",
        choices=(NONE, *AGGREGATES, CHOOSE),
    )  # fmt: skip
    passage_overlap: int = _option(32, "tokens that passages share", type=int)
    passage_best: int = _option(3, "how many passages `--passages mean` counts", type=int)
    labels: int = _option(1, "1 (sigmoid) or 2 (softmax)", type=int, choices=(1, 2))
    max_length: int | None = _option(None, "longest pair in tokens; default: what the base allows", type=int)
    layers: int | None = _option(
        None,
        "prune the encoder to so many of its layers, the first, the last, and others evenly between; default: all",
        type=int,
    )
    epochs: int = _option(2, "passes over the training split", type=int)
    batch_size: int | None = _option(
        None, "rows a step, or groups for pairwise and listwise; default: 8 rows, 16 groups", type=int
    )
    accumulate: int = _option(1, "batches a step", type=int)
    learning_rate: float = _option(
        1e-4, "for the encoder; heads, and what --method adds, take ten times as much; for BERT-base, 3e-5", type=float
    )
    warm_up: float = _option(0.1, "share of the steps in which the rate rises; then it falls to 0", type=float)
    weight_decay: float = _option(0.01, "of matrices, not of biases and layer norms", type=float)
    optimizer: str = _option("adamw_torch", "any optimizer that transformers' Trainer knows by name", metavar="NAME")
    dropout: float = _option(0.0, "share of activations left out in training", type=float)
    freeze: str = _option(
        "words", 'weights that do not move: "none", "words" (word embeddings), "embeddings", "encoder" (all but the '
        'heads), or a number: embeddings and that many layers', metavar="WHAT",
    )  # fmt: skip
    layer_decay: float = _option(1.0, "each layer's rate as a share of the one above", type=float)
    method: str = _option(
        FULL, "what is trained of the encoder: everything, or a PEFT method's weights", choices=METHODS
    )
    rank: int = _option(8, "of lora and adalora; of prefix, the number of its tokens", type=int)
    adversarial: float = _option(0.0, "FGM: also learn texts moved by this much against the gradient", type=float)
    word_dropout: float = _option(0.0, "share of words left out of a text, anew in each epoch", type=float)
    synonyms: str | None = _option(
        None, "file of synonyms, a comma-separated set a line, exchanged at random", metavar="FILE"
    )
    translated: str | None = _option(
        None, "click log of back-translated rows, learned beside the others", metavar="FILE"
    )
    average: float = _option(
        0.0, "decay of a running average of the weights, which is what is kept; 0: none", type=float
    )
    metric: str | None = _option(None, "metric on dev by which the best is kept; default: by objective", metavar="NAME")
    evaluations: int = _option(1, "evaluations on dev an epoch", type=int)
    patience: int | None = _option(None, "stop after so many evaluations without a better one", type=int)
    precision: str = _option("fp32", "of the computation; weights are kept in fp32", choices=PRECISIONS)
    gradient_checkpointing: bool = _option(
        False, "compute activations twice instead of keeping them", action="store_true"
    )
    report_to: tuple[str, ...] = _option(
        tuple, "trackers beside TensorBoard, such as wandb", nargs="+", metavar="TRACKER"
    )
    seed: int = _option(0, "of the head, the order, and dropout", type=int)

    @property
    def by_group(self) -> bool:
        """Whether a batch is made of groups."""
        return self.objective != CLICK

    @property
    def items(self) -> int:
        """How many rows or groups a batch has."""
        return self.batch_size or (16 if self.by_group else 8)

    @property
    def task_weights(self) -> dict[str, float] | None:
        """The weight of each task; None if they are learned."""
        if self.understanding and self.understanding_weight == (LEARNED,):
            return None
        given = self.understanding_weight * (1 if len(self.understanding_weight) > 1 else len(self.understanding))
        return {"click": 1.0} | {task: float(weight) for task, weight in zip(self.understanding, given, strict=True)}

    def check(self) -> None:
        """Raises SettingsError for values out of range, and for settings that contradict each other."""
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingsError(f"{_flag(name)} is {value}; it must be {least} or more")
        for name in ("warm_up", "dropout", "word_dropout", "average", "full_first"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingsError(f"{_flag(name)} is {getattr(self, name)}; it must be from 0 to below 1")
        if not self.learning_rate > 0 or not 0 < self.layer_decay <= 1:
            raise SettingsError("--learning-rate must be over 0, and --layer-decay over 0 and at most 1")
        if self.freeze not in ("none", "words", "embeddings", "encoder") and not self.freeze.isdecimal():
            raise SettingsError(f"--freeze is {self.freeze!r}; none, words, embeddings, encoder, or a number of layers")
        if self.understanding_weight != (LEARNED,):
            for weight in self.understanding_weight:
                if not _is_weight(weight):
                    raise SettingsError(f"--understanding-weight is {weight!r}; it takes numbers, or {LEARNED}")
            if len(self.understanding_weight) not in (1, len(self.understanding)):
                raise SettingsError("--understanding-weight takes one number for all tasks, or one for each")
        if self.method == PREFIX:
            self._check_prefix()
        if self.passages != NONE and self.labels == 2:
            raise SettingsError("--passages needs --labels 1: passages are aggregated by their one logit")

    def _check_prefix(self) -> None:
        if self.layers is not None:
            raise SettingsError(
                "--layers does not go with --method prefix: its adapter would name a base of all layers; "
                "use --method lora"
            )
        if self.gradient_checkpointing:
            raise SettingsError("--gradient-checkpointing does not go with --method prefix: BERT would drop the prefix")
        if self.attention == USER_ONCE:
            raise SettingsError(
                f"--attention {USER_ONCE} does not go with --method prefix, which is never served; use --method lora"
            )


def _is_weight(text: str) -> bool:
    try:
        return 0 <= float(text) < float("inf")
    except ValueError:
        return False


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add one option for each setting."""
    for each in fields(TrainSettings):
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        plain = " ".join(default) if isinstance(default, tuple) else default
        shown = "" if default in (None, False, ()) or "default:" in each.metadata["help"] else f"; default: {plain}"
        parser.add_argument(
            _flag(each.name), dest=each.name, default=default, help=each.metadata["help"].replace("%", "%%") + shown,
            **each.metadata["parse"],
        )  # fmt: skip


def from_options(options: argparse.Namespace) -> TrainSettings:
    """Make the settings of a command's options."""
    values: dict[str, Any] = {each.name: getattr(options, each.name) for each in fields(TrainSettings)}
    lists: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return TrainSettings(**{**values, **lists})


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
