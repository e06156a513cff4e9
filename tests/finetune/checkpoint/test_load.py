"""Loading a checkpoint's weights: broken and missing ones are refused by name."""

from pathlib import Path

import pytest
import torch

from finetune.checkpoint.load import CheckpointError, load_checkpoint
from tests.finetune.checkpoint.changes import set_weight


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_refuses_a_broken_weight_by_name(checkpoint: Path, value: float) -> None:
    bias = torch.zeros(32)
    bias[3] = value
    set_weight(checkpoint, "bert.pooler.dense.bias", bias)
    with pytest.raises(CheckpointError, match=r"weight bert\.pooler\.dense\.bias holds NaN or infinity"):
        load_checkpoint(checkpoint)


def test_refuses_missing_weights_by_name(checkpoint: Path, base: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weights for classifier\.bias, classifier\.weight"):
        load_checkpoint(base)
    set_weight(checkpoint, "bert.encoder.layer.1.output.dense.weight", None)
    with pytest.raises(CheckpointError, match=r"no weights for bert\.encoder\.layer\.1\.output\.dense\.weight"):
        load_checkpoint(checkpoint)
