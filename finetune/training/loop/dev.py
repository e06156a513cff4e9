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
AUC, SIGNIFICANT_PAIRS, ALL_PAIRS = JUDGES = ("auc", "significant_pair_accuracy", "pairwise_accuracy")
# Of a student: of what its teachers are above chance. Below it, it has not learned what they know.
LEAST_SHARE = 0.5
# What is shown of the metrics, in this order; the rest is in TensorBoard.
SHOWN = ("auc", "log_loss", "ndcg_at_10", "pairwise_accuracy", "significant_pair_accuracy")
FEWEST_PAIRS = 100  # that differ significantly; of fewer, a good model's interval may reach down to chance
_ADVICE = (
    "Give it more steps (--epochs), a lower --learning-rate or more --layers; with --attention user_once, raise "
    "--full-first, or train with full attention and carry that over (--from-checkpoint), if it was not; and see "
    "whether dev is large enough to tell, and whether the texts say anything about the clicks"
)


class Dev:
    """A dev split: its metrics at each evaluation, and their intervals, which take longer, of what is kept."""

    def __init__(self, rows: Sequence[ClickRow]) -> None:
        """Take the rows.

        Raises:
            MetricError: nothing can be measured on them.
        """
        self.rows = rows
        self.known = evaluate_ranking(rows, [CHANCE] * len(rows))  # the metrics that it has

    def measure(self, model: JointModel, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Metrics:
        """Measure a model as it would be saved now."""
        return measure(self._scored(model, tokenizer, max_length))

    def intervals(self, model: JointModel, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Metrics:
        """Measure the 95 % intervals of `JUDGES`, as `auc_low` and `auc_high`; none of too few groups."""
        found = bootstrap(self._scored(model, tokenizer, max_length))
        ends = {name: zip(("low", "high"), found[name], strict=True) for name in JUDGES if name in found}
        return {f"{name}_{end}": limit for name, limits in ends.items() for end, limit in limits}

    def _scored(self, model: JointModel, tokenizer: PreTrainedTokenizerFast, max_length: int) -> ScoredLog:
        logits = score_documents(model.click, model.heads, tokenizer, self.rows, max_length)
        labels = label_names(model.click)
        return ScoredLog.of(self.rows, click_probability(logits, labels if logits.shape[1] > 1 else labels[-1:]))


def shown(metrics: Metrics) -> str:
    """The metrics that are shown, in a line."""
    return ", ".join(f"{name} {metrics[name]:.4f}" for name in SHOWN if name in metrics)


def plateau(metrics: Metrics, objective: str, taught: Metrics | None = None) -> str | None:
    """Tell what to do if a model has learned next to nothing, by what its objective is about; None if it has learned.

    That is one that is no better than chance, or, where its teachers' metrics `taught` are known, one that is above
    chance by less than `LEAST_SHARE` of what they are.
    """
    name = _judge(metrics, objective)
    low, high = (metrics.get(f"{name}_{end}", metrics[name]) for end in ("low", "high"))
    found = f"dev {name} is {metrics[name]:.4f} ({low:.4f} to {high:.4f})"
    if low <= CHANCE:
        return (
            f"{found}, no better than chance ({CHANCE}): the training is stuck, and what is saved ranks at random. "
            f"{_ADVICE}"
        )
    if taught and metrics[name] - CHANCE < LEAST_SHARE * (taught[name] - CHANCE):
        return f"{found}, where its teachers have {taught[name]:.4f}: the training is stuck. {_ADVICE}"
    return None


def _judge(metrics: Metrics, objective: str) -> str:
    """Choose by which metric a plateau is told."""
    if objective == CLICK:
        return AUC
    enough = metrics.get("significant_pairs", 0) >= FEWEST_PAIRS and f"{SIGNIFICANT_PAIRS}_low" in metrics
    return SIGNIFICANT_PAIRS if enough else ALL_PAIRS
