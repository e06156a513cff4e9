"""The last layer for [CLS] alone: the states and the gradients of Hugging Face's whole forward pass."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertModel

from finetune.checkpoint.attention import user_once_mask, user_tokens
from finetune.data.clicklog import read_click_log
from finetune.training.batches import Collator
from finetune.training.build import build
from finetune.training.first_token import first_states
from finetune.training.model import Batch, JointModel
from finetune.training.settings import TrainSettings
from tests.finetune.conftest import make_config


def make_batch(lengths: list[tuple[int, int]], once: bool) -> dict[str, Tensor]:
    """Pairs of so many user and candidate tokens, special ones counted, padded to the longest."""
    generator, longest = torch.Generator().manual_seed(len(lengths)), max(map(sum, lengths))
    types = torch.tensor([[0] * user + [1] * text + [0] * (longest - user - text) for user, text in lengths])
    mask = torch.tensor([[1] * (user + text) + [0] * (longest - user - text) for user, text in lengths])
    ids = torch.randint(5, 30, mask.shape, generator=generator) * mask
    attention = user_once_mask(types, mask) if once else mask
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": attention}


def make_bert(layers: int, attention: str) -> BertModel:
    torch.manual_seed(layers)
    config = make_config(num_hidden_layers=layers, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config._attn_implementation = attention
    return BertModel(config).double()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 7), st.integers(0, 7)), min_size=1, max_size=5),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(["sdpa", "eager"]),
)
def test_states_and_gradients_are_those_of_the_whole_pass(
    lengths: list[tuple[int, int]], layers: int, once: bool, attention: str
) -> None:
    bert, batch = make_bert(layers, attention), make_batch(lengths, once)
    if once:  # the mask is added to scores of float64
        batch["attention_mask"] = batch["attention_mask"].double()
    whole = bert(**batch).last_hidden_state[:, :1]
    weights = torch.sin(torch.arange(whole.numel(), dtype=whole.dtype)).view_as(whole)
    (whole * weights).sum().backward()
    expected = {name: weight.grad for name, weight in bert.named_parameters()}
    bert.zero_grad()

    first = first_states(bert, **batch)
    (first * weights).sum().backward()

    torch.testing.assert_close(first, whole, rtol=0, atol=1e-12)
    for name, weight in bert.named_parameters():
        if name.startswith("pooler."):
            assert weight.grad is None
        else:
            torch.testing.assert_close(weight.grad, expected[name], rtol=0, atol=1e-10, msg=name)


def test_attention_is_dropped_out_in_training_alone() -> None:
    bert, batch = make_bert(1, "sdpa"), make_batch([(5, 6)], once=False)
    attention = bert.encoder.layer[0].attention
    attention.self.dropout.p = 0.5
    states = {mode: [first_states(bert.train(mode), **batch) for _ in range(4)] for mode in (True, False)}
    assert all(torch.equal(states[False][0], other) for other in states[False])
    assert any(not torch.allclose(states[True][0], other) for other in states[True][1:])


@pytest.mark.parametrize("layers", [2, 3])
def test_what_is_frozen_below_gets_no_gradient(layers: int) -> None:
    bert, batch = make_bert(layers, "sdpa"), make_batch([(3, 4), (2, 6)], once=False)
    bert.embeddings.requires_grad_(False)
    bert.encoder.layer[0].requires_grad_(False)
    first_states(bert, **batch).sum().backward()
    moved = {name for name, weight in bert.named_parameters() if weight.grad is not None}
    assert moved
    assert all(not name.startswith(("embeddings.", "encoder.layer.0.")) for name in moved)


CASES: list[dict[str, Any]] = [
    {}, {"attention": "user_once", "full_first": 0.0}, {"method": "lora"}, {"method": "adalora"}, {"method": "ia3"},
    {"gradient_checkpointing": True}, {"passages": "mean"},
]  # fmt: skip


def make_joint(base: Path, folder: Path, options: dict[str, Any]) -> tuple[JointModel, Batch]:
    """A model in training whose added weights are not zero, and a batch."""
    rows = read_click_log(folder / "train.jsonl")
    model, tokenizer, longest = build(str(base), rows, TrainSettings(max_length=24, **options))
    for name, weight in model.named_parameters():
        if any(part in name for part in ("lora_", "ia3_")):
            torch.nn.init.normal_(weight.data, 0.5, 0.3)
    collator = Collator(rows, tokenizer, model.heads.settings, longest, user_tokens(model.click.config))
    return model, collator([[place] for place in range(0, 40, 5)])


@pytest.mark.parametrize("options", CASES, ids=str)
def test_a_model_in_training_is_the_whole_pass(
    options: dict[str, Any], base: Path, click_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = make_joint(base, click_folder, options)
    if options.get("gradient_checkpointing"):
        model.activation_checkpointing_enable()
    widths = []
    model.click.bert.encoder.layer[-1].intermediate.register_forward_hook(
        lambda _module, _inputs, output: widths.append(output.shape[1])
    )

    def gradients() -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        logits = model(**batch)["logits"]
        (logits * torch.arange(1, len(logits) + 1)[:, None]).sum().backward()
        return logits.detach(), {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}

    found, moved = gradients()
    monkeypatch.setattr(JointModel, "_first_states", lambda self, pairs: self.click.bert(**pairs).last_hidden_state)
    expected, all_moved = gradients()

    assert widths[0] == 1 < max(widths), "[CLS] alone, and then all tokens"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert set(moved) == set(all_moved)
    for name, gradient in moved.items():
        torch.testing.assert_close(gradient, all_moved[name], rtol=1e-3, atol=1e-3, msg=name)


def test_a_prefix_goes_through_the_whole_pass(base: Path, click_folder: Path) -> None:
    model, batch = make_joint(base, click_folder, {"method": "prefix"})
    logits = model(**batch)["logits"]
    torch.nn.init.normal_(next(iter(model.prefix.parameters())), 0.0, 3.0)  # type: ignore[union-attr]
    assert (model(**batch)["logits"] - logits).abs().max() > 1e-4, "the prefix is attended to"


def test_half_precision_stays_close_to_full_precision(base: Path, click_folder: Path) -> None:
    for options in CASES[:2]:
        model, batch = make_joint(base, click_folder, options)
        model.train(mode=False)
        with torch.no_grad():
            whole = model(**batch)["logits"]
            with torch.autocast("cpu", torch.bfloat16):
                half = model(**batch)["logits"]
        assert 0 < (half - whole).abs().max() < 0.05
