"""The dev split: what is measured on it at each evaluation, and whether a training is stuck."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from finetune.checkpoint.load import label_names
from finetune.data.clicklog import ClickRow
from finetune.evaluation.bootstrap import bootstrap
from finetune.evaluation.metrics import ScoredLog, click_probability, evaluate_ranking, measure
from finetune.evaluation.scoring import score_documents
from finetune.training.model import JointModel
from finetune.training.settings import CLICK

Metrics = dict[str, float]
CHANCE = 0.5  # of AUC and of the accuracy on pairs, whatever the log
JUDGES = ("auc", "significant_pair_accuracy", "pairwise_accuracy")


class Dev:
    """A dev split. Beside the metrics, a measurement has the 95 % interval of `JUDGES`, as `auc_low` and `auc_high`."""

    def __init__(self, rows: Sequence[ClickRow]) -> None:
        """Take the rows.

        Raises:
            MetricError: nothing can be measured on them.
        """
        self.rows = rows
        self.known = evaluate_ranking(rows, [CHANCE] * len(rows))  # the metrics that it has

    def measure(self, model: JointModel, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Metrics:
        """Measure a model as it would be saved now."""
        logits = score_documents(model.click, model.heads, tokenizer, self.rows, max_length)
        labels = label_names(model.click)
        log = ScoredLog.of(self.rows, click_probability(logits, labels if logits.shape[1] > 1 else labels[-1:]))
        intervals = {name: limits for name, limits in bootstrap(log).items() if name in JUDGES}
        return {
            **measure(log),
            **{f"{name}_low": low for name, (low, _) in intervals.items()},
            **{f"{name}_high": high for name, (_, high) in intervals.items()},
        }


def plateau(metrics: Metrics, objective: str) -> str | None:
    """Tell what to do if a model is no better than chance, by what its objective is about; None if it is better."""
    name = next(judge for judge in (JUDGES if objective == CLICK else JUDGES[1:]) if judge in metrics)
    low, high = (metrics.get(f"{name}_{end}", metrics[name]) for end in ("low", "high"))
    if low > CHANCE:
        return None
    return (
        f"dev {name} is {metrics[name]:.4f} ({low:.4f} to {high:.4f}), no better than chance ({CHANCE}): the training "
        "is stuck, and what is saved ranks at random. Give it more steps (--epochs) or a lower --learning-rate; with "
        "--attention user_once, raise --full-first, or train with --attention full and carry that over with "
        "--from-checkpoint; and see whether dev is large enough to tell, and whether the texts say anything about the "
        "clicks"
    )
