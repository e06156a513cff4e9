"""Which tokens of a pair see which: full attention, as BERT has it, or the user text once.

Where a checkpoint's config.json says "clickbert_attention": "user_once", a user text's tokens and their [SEP] see each
other only. [CLS], the candidate's tokens and the last [SEP] see everything. So a user text's hidden states are the same
beside every candidate, and serving computes them once. For the same reason its cut must not depend on the candidate: it
keeps "clickbert_user_tokens" tokens at most. A single text, `[CLS] text [SEP]`, has full attention.

A config without these fields means full attention, and pairs that are cut longest first. Tools that do not know them
load such a checkpoint, too, but compute full attention.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig

from finetune.names import USER_ONCE

ATTENTION_FIELD = "clickbert_attention"
USER_TOKENS_FIELD = "clickbert_user_tokens"
SPECIAL_TOKENS = 3  # of a pair: [CLS] and two [SEP]


def user_tokens(config: BertConfig) -> int | None:
    """The most tokens that a user text keeps, special ones not counted; None for full attention."""
    kept: int | None = getattr(config, USER_TOKENS_FIELD, None)
    return kept


def default_user_tokens(max_length: int) -> int:
    """Half of the room that pairs of `max_length` tokens have."""
    return (max_length - SPECIAL_TOKENS) // 2


def set_user_tokens(config: BertConfig, kept: int | None) -> None:
    """Make `config` say that user texts are computed once and keep so many tokens; None: that attention is full."""
    for field, value in ((ATTENTION_FIELD, USER_ONCE), (USER_TOKENS_FIELD, kept)):
        if kept is not None:
            setattr(config, field, value)
        elif hasattr(config, field):
            delattr(config, field)


def attended(config: BertConfig, batch: dict[str, Tensor]) -> dict[str, Any]:
    """Give a padded batch (`finetune.evaluation.scoring.pad`) the mask of the model's attention.

    For full attention it is the batch itself; else `attention_mask` becomes that of `user_once_mask`.
    """
    if user_tokens(config) is None:
        return batch
    return {**batch, "attention_mask": user_once_mask(batch["token_type_ids"], batch["attention_mask"])}


def user_once_mask(token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Make the mask of a batch, both [pairs, longest]: fp32 [pairs, 1, longest, longest], 0 or -infinity.

    transformers adds it to the scores as it is, in its "sdpa" and its "eager" attention alike. A row that is a single
    text, all of type 0, gets full attention. Padding sees what [CLS] sees, so that no softmax is empty.
    """
    real = attention_mask.bool()
    user = real & (token_type_ids == 0) & (token_type_ids == 1).any(dim=1, keepdim=True)
    user[:, 0] = False  # [CLS]
    seen = real[:, None, :] & (user[:, None, :] | ~user[:, :, None])
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)[:, None]
