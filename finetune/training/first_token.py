"""The encoder in training: [CLS]'s last state, all that the heads read, and no work for states that none of them reads.

In the last layer keys and values are computed of every token, and everything else of [CLS] alone. Losses and gradients
are those of the whole forward pass, up to rounding. `finetune.evaluation.scoring`, the reference, computes it whole.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import BertModel


def first_states(bert: BertModel, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Compute what `bert(...).last_hidden_state[:, :1]` is.

    Args:
        bert: an encoder without a prefix.
        input_ids: [pairs, longest].
        token_type_ids: [pairs, longest].
        attention_mask: 1 for tokens and 0 for padding [pairs, longest], or a mask that is added to the scores
            [pairs, 1, longest, longest] (`finetune.checkpoint.attention.user_once_mask`).

    Returns:
        [pairs, 1, hidden]
    """
    layers = list(bert.encoder.layer)
    states = bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
    mask = _added(attention_mask, states.dtype)
    for layer in layers[:-1]:
        states = layer(states, mask)
    last: Any = layers[-1]  # has no types
    first = last.attention.output(_attend_first(last.attention.self, states, mask), states[:, :1])
    last_state: Tensor = last.feed_forward_chunk(first)
    return last_state


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The mask as it is added to the scores; None where nothing is masked, which the fused kernels are fastest for."""
    if mask.dim() == 4:
        return mask.to(dtype)
    if bool(mask.all()):
        return None
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask == 0, -torch.inf)[:, None, None]


def _attend_first(attention: Any, states: Tensor, mask: Tensor | None) -> Tensor:
    """What [CLS] takes from all tokens: states [pairs, longest, hidden] -> [pairs, 1, hidden]."""

    def by_head(projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:2], attention.num_attention_heads, -1).transpose(1, 2)

    context = functional.scaled_dot_product_attention(
        by_head(attention.query(states[:, :1])),
        by_head(attention.key(states)),
        by_head(attention.value(states)),
        attn_mask=None if mask is None else mask[:, :, :1],
        dropout_p=attention.dropout.p if attention.training else 0.0,
    )
    return context.transpose(1, 2).flatten(2)
