"""The encoder in training: [CLS]'s last state, all that the heads read, and no work for states that none of them reads.

In the last layer keys and values are computed of every token, and everything else of [CLS] alone. Without dropout,
losses and gradients are those of the whole forward pass, up to rounding; with it, other activations are drawn.
`finetune.evaluation.scoring`, the reference, computes the whole pass.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional
from transformers import BertModel
from transformers.masking_utils import create_bidirectional_mask


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
    mask = create_bidirectional_mask(bert.config, inputs_embeds=states, attention_mask=attention_mask)
    for layer in layers[:-1]:
        states = layer(states, mask)
    last: Any = layers[-1]  # has no types
    first = last.attention.output(_attend_first(last.attention.self, states, mask), states[:, :1])
    last_state: Tensor = last.feed_forward_chunk(first)
    return last_state


def _attend_first(attention: Any, states: Tensor, mask: Any) -> Tensor:
    """What [CLS] takes from all tokens: states [pairs, longest, hidden] -> [pairs, 1, hidden].

    `mask` is as transformers makes it, boolean or added, [pairs, 1, longest, longest]; None if nothing is masked.
    """

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
