"""Training few weights of the encoder instead of all, with PEFT; heads, classifier and pooler are always trained whole.

    lora      every linear layer of the encoder gets a sum of two thin matrices of `rank` (Hu et al., 2022)
    adalora   the same as a product of three, whose ranks move to the layers where they matter (Zhang et al., 2023)
    ia3       keys, values and the inside of each layer are scaled, a factor a dimension (Liu et al., 2022)
    prefix    each layer attends to `rank` learned tokens before the text (Li and Liang, 2021)

The first three are merged into the weights when the run is saved: a plain BERT, as fast as any. PEFT has no bottleneck
adapters ("adapters" of Houlsby et al.), whose layers could not be merged either; ia3 is the small one that can be. A
prefix cannot be merged: it is saved as a PEFT adapter, which PEFT loads, and which nothing here serves or evaluates.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from finetune.checkpoint.base_model import FRESH
from finetune.checkpoint.heads import Heads, write_heads
from finetune.checkpoint.quiet import quiet_transformers
from finetune.checkpoint.save import replacing
from finetune.training.settings import ADALORA, FULL, IA3, LORA, PREFIX, SettingsError, TrainSettings

IMPORTANCE = "adalora.safetensors"
# Shares of the run in which AdaLoRA keeps the ranks as they are: at first, when no layer's importance is known yet, and
# at the end, when the weights settle.
WARM_UP, SETTLED = 0.1, 0.3


class Method:
    """A PEFT method on a click model, which it changes in place."""

    def __init__(self, click: BertForSequenceClassification, settings: TrainSettings) -> None:
        """Add the method's weights, and let only them, the classifier and the pooler move.

        Raises:
            SettingsError: --freeze leaves nothing of the encoder to train, or does not go with the method.
        """
        self.name = settings.method
        self.config = _config(settings, _open_layers(settings, int(click.config.num_hidden_layers)))
        with quiet_transformers(), warnings.catch_warnings(action="ignore", category=FutureWarning):
            self.peft: PeftModel = get_peft_model(click, self.config)
        if self.name == PREFIX:
            self._attend_to_prefix(click)
        for name, weight in click.named_parameters():
            if name.startswith(FRESH) and ".original_module." not in name:
                weight.requires_grad = True

    @property
    def prefix(self) -> nn.Module | None:
        """The module that holds a prefix; the other methods' weights are in the click model itself."""
        return cast("nn.Module", self.peft.prompt_encoder) if self.name == PREFIX else None

    def penalty(self) -> Tensor | None:
        """What the method adds to the loss, a scalar: AdaLoRA's matrices must stay orthogonal for ranks to compare."""
        if self.name != ADALORA:
            return None
        grams = [
            weight @ weight.T if "lora_A" in name else weight.T @ weight
            for name, weight in self.peft.named_parameters()
            if "lora_A" in name or "lora_B" in name
        ]
        gaps = [torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)) for gram in grams]
        return cast("Tensor", self.config.orth_reg_weight * torch.stack(gaps).mean())

    def callbacks(self) -> list[TrainerCallback]:
        """What the Trainer must call."""
        return [RankAllocation(self.peft, self.config)] if self.name == ADALORA else []

    def save(
        self, click: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, folder: Path, heads: Heads
    ) -> None:
        """Save a prefix as PEFT's own adapter folder, with tokenizer and heads, whole or not at all.

        Raises:
            CheckpointError: `folder` exists and is no checkpoint.
            OSError: the disk is full, or the folder cannot be written.
        """
        with replacing(folder) as draft:
            with quiet_transformers():
                self.peft.save_pretrained(str(draft))
                click.config.save_pretrained(draft)  # the labels' names
                tokenizer.save_pretrained(draft)
            write_heads(heads, draft)

    def merge(self) -> None:
        """Add the method's weights to the model's own, and leave a plain BERT."""
        merged: Any = self.peft
        merged.merge_and_unload()

    def _attend_to_prefix(self, click: BertForSequenceClassification) -> None:
        """Let every pass through the encoder attend to the prefix, as PEFT's own forward pass would."""

        def add(encoder: nn.Module, inputs: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            mask = batch["attention_mask"]
            ones = mask.new_ones(len(mask), self.config.num_virtual_tokens)
            prompt = cast("Any", self.peft).get_prompt(len(mask))
            return inputs, {**batch, "attention_mask": torch.cat([ones, mask], dim=1), "past_key_values": prompt}

        click.bert.register_forward_pre_hook(add, with_kwargs=True)


class RankAllocation(TrainerCallback):
    """Moves AdaLoRA's ranks between layers after each step. Their importance, so far, is in every checkpoint."""

    def __init__(self, peft: PeftModel, config: Any) -> None:
        self.peft = peft
        self.config = config

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        """Spread the budget over the run; a resumed run goes on with what its checkpoint knows."""
        self.config.total_step = state.max_steps
        self.config.tinit = round(WARM_UP * state.max_steps)
        self.config.tfinal = round(SETTLED * state.max_steps)
        self.config.deltaT = max(1, state.max_steps // 100)
        path = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / IMPORTANCE
        if state.global_step and path.exists():
            self._load(load_file(path))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        """Weigh the step's gradients, which are still there, and move ranks."""
        tuner: Any = self.peft.base_model
        tuner.update_and_allocate(state.global_step + 1)

    def write(self, folder: Path) -> None:
        """Write the importance into a checkpoint that is being written."""
        save_file(self._known(), folder / IMPORTANCE)

    def _tables(self) -> dict[str, dict[str, Tensor]]:
        allocator = cast("Any", self.peft.base_model).rankallocator
        return {name: getattr(allocator, name) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}

    def _known(self) -> dict[str, Tensor]:
        tables: Mapping[str, Mapping[str, Any]] = {**self._tables(), "rank_pattern": self.config.rank_pattern or {}}
        return {
            f"{table}/{name}": torch.as_tensor(value).contiguous()
            for table, values in tables.items()
            for name, value in values.items()
        }

    def _load(self, known: dict[str, Tensor]) -> None:
        device = next(self.peft.parameters()).device
        tables = self._tables()
        pattern = {}
        for key, value in known.items():
            table, name = key.split("/", 1)
            if table == "rank_pattern":
                pattern[name] = value.tolist()
            else:
                tables[table][name] = value.to(device)
        self.config.rank_pattern = pattern or None


def trained_share(model: nn.Module) -> tuple[int, int]:
    """How many weights of a model move, and how many it has."""
    weights = list(model.parameters())
    return sum(weight.numel() for weight in weights if weight.requires_grad), sum(map(torch.numel, weights))


def _open_layers(settings: TrainSettings, layers: int) -> list[int]:
    """The encoder's layers that --freeze leaves to the method."""
    if settings.method == PREFIX and settings.freeze.isdecimal():
        raise SettingsError("--freeze with a number of layers does not go with --method prefix, which reaches them all")
    frozen = int(settings.freeze) if settings.freeze.isdecimal() else 0
    if settings.freeze == "encoder" or frozen >= layers:
        raise SettingsError(
            f"--freeze {settings.freeze} leaves nothing of the encoder to --method {settings.method}; "
            f"use --method {FULL}"
        )
    return list(range(frozen, layers))


def _config(settings: TrainSettings, layers: list[int]) -> Any:
    linear = rf"bert\.encoder\.layer\.({'|'.join(map(str, layers))})\.(.*\.)?(query|key|value|dense)"
    if settings.method == LORA:
        return LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules=linear)
    if settings.method == ADALORA:
        # `RankAllocation` sets the steps when it knows the run's.
        return AdaLoraConfig(
            init_r=max(settings.rank + 1, round(1.5 * settings.rank)), target_r=settings.rank,
            lora_alpha=2 * settings.rank, target_modules=linear, total_step=1, tinit=0, tfinal=0,
        )  # fmt: skip
    if settings.method == IA3:
        # A feed-forward layer is scaled where it reads, the others where they give out.
        inner = rf"bert\.encoder\.layer\.({'|'.join(map(str, layers))})\.output\.dense"
        scaled = rf"bert\.encoder\.layer\.({'|'.join(map(str, layers))})\.(attention\.self\.(key|value)|output\.dense)"
        return IA3Config(target_modules=scaled, feedforward_modules=inner)
    return PrefixTuningConfig(
        task_type=TaskType.SEQ_CLS, num_virtual_tokens=settings.rank, modules_to_save=["pooler", "classifier"]
    )
