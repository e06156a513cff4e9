"""The model whose user texts both graphs of that kind compute once."""

from __future__ import annotations

import pytest
from transformers import BertForSequenceClassification

from finetune.checkpoint.attention import set_user_tokens
from tests.export.graph.packed.once_batches import MOST
from tests.tiny import make_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BertForSequenceClassification:
    folder = make_checkpoint(tmp_path_factory.mktemp("checkpoint"), labels=2, num_hidden_layers=3)
    found = BertForSequenceClassification.from_pretrained(folder).eval()
    set_user_tokens(found.config, MOST)
    return found
