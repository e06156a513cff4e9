"""Makes what is trained: the model with its heads and its position bias, and the objective."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast, set_seed

from finetune.checkpoint.attention import default_user_tokens, set_user_tokens, user_tokens
from finetune.checkpoint.base_model import load_base, resolve_base
from finetune.checkpoint.heads import Heads, HeadSettings, Passages, read_heads
from finetune.checkpoint.tokenizer import SHORTEST
from finetune.data.clicklog import ClickRow
from finetune.evaluation.metrics import group_rows
from finetune.names import AGGREGATES, ESTIMATED, NONE, SIMILARITY, TOPIC, USER_ONCE
from finetune.objectives.clicks import ClickLoss, ListwiseLoss, Objective, pairwise_loss
from finetune.objectives.position_bias import PositionBias, PositionBiasError, read_odds
from finetune.objectives.understanding import TaskWeights
from finetune.training.methods.few_weights import Method
from finetune.training.model import JointModel
from finetune.training.parameters import freeze
from finetune.training.settings import CLICK, FULL, PAIRWISE, PREFIX, SettingsError, TrainSettings


def build(
    base: str, rows: Sequence[ClickRow], settings: TrainSettings
) -> tuple[JointModel, PreTrainedTokenizerFast, int]:
    """Make the model to train on `rows`, its tokenizer, and its longest pair in tokens.

    Heads of the base that fit are kept, as its click head is. A base that was fine-tuned for `user_once` goes on so,
    and does not begin with full attention again.

    Raises:
        CheckpointError, SettingsError, PositionBiasError: as `train`.
    """
    set_seed(settings.seed)
    folder = resolve_base(base)
    click, tokenizer, longest = load_base(folder, settings.labels, settings.seed)
    if settings.layers:
        keep_layers(click, settings.layers)
    size = int(click.config.hidden_size)
    heads, wanted = read_heads(folder, size), head_settings(rows, settings)
    if settings.method == PREFIX:
        longest -= settings.rank  # a prefix takes the first positions
    max_length = settings.max_length or longest
    if not SHORTEST <= max_length <= longest:
        raise SettingsError(f"--max-length is {max_length}; this base takes {SHORTEST} to {longest} tokens")
    tokenizer.model_max_length = max_length  # saved with the tokenizer, so the model is served as it was trained
    is_once = user_tokens(click.config) is not None
    once = settings.attention == USER_ONCE if settings.attention else is_once
    if once and settings.method == PREFIX:
        raise SettingsError(f"{base} was fine-tuned for {USER_ONCE}, which does not go with --method prefix")
    set_user_tokens(click.config, default_user_tokens(max_length) if once else None)
    set_dropout(click, settings.dropout)
    torch.manual_seed(settings.seed)
    method = Method(click, settings) if settings.method != FULL else None
    if heads.settings != wanted:
        heads = Heads(wanted, size)
    weights = TaskWeights(("click", *settings.understanding), settings.task_weights)
    model = JointModel(click, heads, _position_bias(rows, settings), weights, method)
    model.full_first = settings.full_first if once and not is_once else 0.0
    model.attends_fully = model.full_first > 0
    freeze(model, settings.freeze)
    return model, tokenizer, max_length


def keep_layers(click: BertForSequenceClassification, count: int) -> None:
    """Prune the encoder to `count` of its layers: the first, the last, and others evenly between them; to 1: the first.

    Raises:
        SettingsError: it has fewer.
    """
    layers = click.bert.encoder.layer
    if count > len(layers):
        raise SettingsError(f"--layers is {count}, but the encoder has {len(layers)} layers")
    kept = [place * (len(layers) - 1) // max(count - 1, 1) for place in range(count)]
    click.bert.encoder.layer = nn.ModuleList(layers[place] for place in kept)
    # As a BERT of so many layers numbers them: transformers and PEFT find what belongs to a layer by it.
    for place, layer in enumerate(click.bert.encoder.layer):
        attention: Any = layer.attention  # has no types
        attention.self.layer_idx = place
    click.config.num_hidden_layers = count


def set_dropout(model: nn.Module, share: float) -> None:
    """Set every dropout of a BERT, attention's included."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share


def head_settings(rows: Sequence[ClickRow], settings: TrainSettings) -> HeadSettings:
    """Say which heads are trained on `rows`.

    Raises:
        SettingsError: the rows lack what a head learns from.
    """
    topics: tuple[str, ...] = ()
    if TOPIC in settings.understanding:
        topics = tuple(sorted({topic for row in rows for topic in row.topics}))
        if len(topics) < 2:
            raise SettingsError(
                f"--understanding topic needs rows with a 'topic', of two or more; the training split has {len(topics)}"
            )
    if SIMILARITY in settings.understanding and not any(row.query and row.clicks for row in rows):
        raise SettingsError("--understanding similarity needs user texts with clicks; the training split has none")
    passages = None
    if settings.passages in AGGREGATES:
        passages = Passages(settings.passages, settings.passage_overlap, settings.passage_best)
    return HeadSettings(
        topics=topics,
        several_topics=any(len(row.topics) > 1 for row in rows) and bool(topics),
        embedding_size=settings.embedding_size if SIMILARITY in settings.understanding else 0,
        passages=passages,
    )


def _position_bias(rows: Sequence[ClickRow], settings: TrainSettings) -> PositionBias | None:
    if settings.position_bias == NONE:
        return None
    deepest = max((row.position or 0 for row in rows), default=0)
    if deepest == 0:
        raise PositionBiasError(
            "--position-bias needs rows with a 'position'; the training split has none: leave it out, or import them"
        )
    if settings.position_bias == ESTIMATED:
        return PositionBias(deepest)
    return PositionBias(deepest, read_odds(Path(settings.position_bias)))


def build_objective(rows: Sequence[ClickRow], settings: TrainSettings) -> Objective:
    """Make what is minimised on `rows`.

    Raises:
        SettingsError: the rows tell the objective nothing.
    """
    clicks = np.array([row.clicks for row in rows])
    impressions = np.array([row.impressions for row in rows])
    if not 0 < clicks.sum() < impressions.sum():
        kind = "no click" if not clicks.any() else "nothing but clicks"
        raise SettingsError(f"the training split has {kind}: nothing can be learned from it; check the log")
    if settings.objective == CLICK:
        return ClickLoss(float(impressions.mean()))
    groups = group_rows(rows)
    if not any(np.ptp(clicks[group] / impressions[group]) > 0 for group in groups):
        raise SettingsError(
            f"--objective {settings.objective} needs groups with better and worse candidates; the training split has "
            "none: give candidates that were shown together the same 'group', or use --objective click"
        )
    if settings.objective == PAIRWISE:
        return pairwise_loss
    totals = np.array([clicks[group].sum() for group in groups])
    return ListwiseLoss(float(totals[totals > 0].mean()))
