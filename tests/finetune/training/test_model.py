"""The model in training: passages aggregated as they are served, and the position's offset."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertForSequenceClassification

from finetune.checkpoint.heads import Heads, HeadSettings, Passages
from finetune.evaluation.scoring import aggregate as served
from finetune.names import AGGREGATES
from finetune.objectives.position_bias import PositionBias
from finetune.objectives.understanding import TaskWeights
from finetune.training.model import JointModel, aggregate
from tests.finetune.conftest import make_config

ONE = TaskWeights(("click",), {"click": 1.0})


@given(
    st.lists(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=5), min_size=1, max_size=4),
    st.sampled_from(AGGREGATES),
    st.integers(1, 6),
)
def test_training_aggregates_as_serving_does(documents: list[list[float]], way: str, best: int) -> None:
    passages = Passages(way, overlap=4, best=best)
    logits = torch.tensor([logit for document in documents for logit in document])
    weights = torch.sin(logits * 7) * 3
    rows = torch.tensor([row for row, document in enumerate(documents) for _ in document])
    places = torch.tensor([place for document in documents for place in range(len(document))])
    found = aggregate(logits[:, None], weights[:, None], rows, places, passages)[:, 0]
    expected = [
        served(logits[rows == row].numpy(), weights[rows == row].numpy(), passages) for row in range(len(documents))
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", AGGREGATES)
def test_gradients_are_finite_where_rows_have_unequal_numbers_of_passages(way: str) -> None:
    logits = torch.randn(4, 1, requires_grad=True)
    weights = torch.randn(4, 1, requires_grad=True)
    rows, places = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 0])
    aggregate(logits, weights, rows, places, Passages(way, overlap=4, best=2)).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[3] == 1).all(), "a document of one passage is that passage"


def test_a_positions_offset_is_added_to_the_click_alone() -> None:
    for labels in (1, 2):
        model = BertForSequenceClassification(make_config(num_labels=labels)).eval()
        bias = PositionBias(3, {1: 1.0, 2: 0.5, 3: 0.25})
        pairs = {
            "input_ids": torch.tensor([[2, 5, 3], [2, 5, 3]]),
            "token_type_ids": torch.zeros(2, 3, dtype=torch.long),
            "attention_mask": torch.ones(2, 3, dtype=torch.long),
        }
        joint = JointModel(model, Heads(HeadSettings(), 32), bias, ONE)
        logits = joint(pairs=pairs, positions=torch.tensor([1, 3]))["logits"]
        difference = (logits[1] - logits[0]).tolist()
        assert difference == pytest.approx([0.0] * (labels - 1) + [float(np.log(0.25))], abs=1e-5)
