"""Continued pre-training: the encoder learns to guess masked words of a domain's texts, before it learns its clicks.

The head that guesses is the base's own if it has one, else a new one; it is dropped when the run is saved. What is kept
is the encoder, with the base's pooler and tokenizer: a folder for `train --base-model`. No vocabulary is changed.
"""

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import (
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from finetune.checkpoint.base_model import load_base, resolve_base
from finetune.checkpoint.files import WEIGHTS, CheckpointError, find_sources
from finetune.checkpoint.quiet import quiet_transformers
from finetune.checkpoint.save import check_output, replacing
from finetune.data.clicklog import ClickLogError, find_split, read_click_log
from finetune.training.batches import SimilarLengths
from finetune.training.loop.callbacks import Progress, StopAtStep
from finetune.training.loop.processes import is_first_process, say
from finetune.training.parameters import HEAD_RATE, group_by_rate
from finetune.training.run_folder import open_run, place_of_run, remove_checkpoints, run_to_end
from finetune.training.settings import SettingsError

HELD_OUT, MOST_HELD_OUT = 0.05, 1000  # share of the texts on which the loss is measured, and how many at most
HEAD = "cls."
Encoded = dict[str, list[int]]


@dataclass(frozen=True)
class PretrainSettings:
    """How to pre-train: `mask` is the share of words that are guessed, `max_length` None what the base allows."""

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 1e-4
    mask: float = 0.15
    max_length: int | None = None
    seed: int = 0


def pretrain(
    texts: Path,
    base: str,
    output: Path,
    settings: PretrainSettings,
    *,
    restart: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[float, float]:
    """Go on pre-training `base` on a text file or a click log's folder (see `read_texts`), and save it as `output`.

    With the same arguments it goes on where it was stopped; `restart` drops a stopped run.

    Returns:
        The loss of a masked word on held-out texts in nats, before and after.

    Raises:
        ClickLogError: the texts cannot be read, or are fewer than two.
        CheckpointError: the base cannot be used, has no token for a mask, or `output` exists and is no checkpoint.
        SettingsError: the settings are out of range, or not those of the run that was stopped.
        KeyboardInterrupt: with how to go on.
    """
    check_output(output)
    found = read_texts(texts)
    run = place_of_run(output)
    click, tokenizer, longest = load_base(resolve_base(base), 1, settings.seed)
    if tokenizer.mask_token_id is None:
        raise CheckpointError(f"{base}: its tokenizer has no mask token, so no word can be masked; choose another base")
    length = settings.max_length or longest
    if not 8 <= length <= longest:
        raise SettingsError(f"--max-length is {length}; this base takes 8 to {longest} tokens")
    if not 0 < settings.mask < 1:
        raise SettingsError(f"--mask is {settings.mask}; it must be between 0 and 1")
    digest = hashlib.sha256("\n".join(found).encode()).hexdigest()
    model, is_new = _masked_model(resolve_base(base), click, settings.seed)
    encoded = _encode(tokenizer, found, length)
    random.Random(settings.seed).shuffle(encoded)
    kept = max(1, min(MOST_HELD_OUT, round(HELD_OUT * len(encoded))))
    held_out, learned = encoded[:kept], encoded[kept:]
    masking = Masking(tokenizer, settings, learned)

    def measure() -> float:
        return masked_loss(model, Masking(tokenizer, settings, held_out), settings.batch_size)

    arguments = _arguments(run, len(learned), settings)
    with arguments.main_process_first(local=False):
        if is_first_process():
            open_run(run, {"pretrain": base, "texts": digest, **asdict(settings)}, restart=restart)
    before = measure()
    say(f"masked-word loss on {kept} held-out texts: {before:.4f} nats")
    stop = StopAtStep()
    with quiet_transformers():
        trainer = _MaskedTrainer(
            model, arguments, learned, masking, measure, HEAD_RATE if is_new else 1, [stop, masking, *callbacks]
        )
    best = run_to_end(trainer, stop, run)
    model.load_state_dict(load_file(best / WEIGHTS), strict=False)
    after = measure()
    if is_first_process():
        click.bert.load_state_dict(model.bert.state_dict(), strict=False)  # the pooler stays the base's
        with replacing(output) as draft, quiet_transformers():
            click.bert.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
        remove_checkpoints(run)
    trainer.accelerator.wait_for_everyone()
    return before, after


def read_texts(path: Path) -> list[str]:
    """Read a text file, a text a line, or the distinct texts of a click log's training split, if it is a folder.

    Raises:
        ClickLogError: it cannot be read, or holds fewer than two texts.
    """
    if path.is_dir():
        rows = read_click_log(find_split(path, "train"))
        lines = [text for row in rows for text in (row.query, row.document)]
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ClickLogError(
                f"{path}: cannot be read as text ({error}); give a UTF-8 file with a text a line, or a click log's "
                "folder"
            ) from error
    texts = list(dict.fromkeys(text for line in lines if (text := line.strip())))
    if len(texts) < 2:
        raise ClickLogError(f"{path}: has {len(texts)} texts; one is held out, so it takes two or more")
    return texts


class Masking(TrainerCallback):
    """Makes batches of texts with masked words, anew in each epoch, and the same again in a resumed run."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, settings: PretrainSettings, encoded: Sequence[Encoded]
    ) -> None:
        self.mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=settings.mask)
        self.seed = settings.seed
        self.encoded = encoded
        self.epoch = 0

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        """Remember the epoch."""
        self.epoch = int(state.epoch or 0)

    def __call__(self, places: Sequence[int]) -> dict[str, Tensor]:
        """Mask words of the texts at some places: the model's three inputs, and `labels`, each [texts, longest]."""
        with torch.random.fork_rng(devices=[]), quiet_transformers():
            torch.manual_seed((self.seed * 1_000_003 + self.epoch) * 1_000_003 + places[0])
            batch: dict[str, Tensor] = self.mask([self.encoded[place] for place in places])
        return batch


def masked_loss(model: BertForMaskedLM, masking: Masking, batch_size: int) -> float:
    """The mean loss of a masked word in nats."""
    model.train(mode=False)
    order = sorted(range(len(masking.encoded)), key=lambda place: len(masking.encoded[place]["input_ids"]))
    total, words = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = {name: value.to(model.device) for name, value in masking(order[start : start + batch_size]).items()}
            masked = int((batch["labels"] >= 0).sum())
            if masked:
                total += masked * float(model(**batch).loss)
                words += masked
    model.train()
    return total / words if words else math.nan


class _Places(Dataset[int]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


class _MaskedTrainer(Trainer):
    def __init__(
        self,
        model: BertForMaskedLM,
        arguments: TrainingArguments,
        encoded: Sequence[Encoded],
        masking: Masking,
        measure: Callable[[], float],
        head_rate: float,
        callbacks: list[TrainerCallback],
    ) -> None:
        self.measure = measure
        self.head_rate = head_rate
        self.lengths = [len(text["input_ids"]) for text in encoded]
        places = _Places(len(encoded))
        super().__init__(
            model, arguments, data_collator=masking, train_dataset=places, eval_dataset=places, callbacks=callbacks
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(Progress())

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return SimilarLengths(self.lengths, self.args.train_batch_size, self.args.seed)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Makes the optimizer; a drawn head learns faster than the encoder, or it would blur what that knows."""
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)

            def rate(name: str) -> float:
                return float(self.args.learning_rate * (self.head_rate if name.startswith(HEAD) else 1))

            groups = group_by_rate(cast("BertForMaskedLM", self.model), rate, self.args.weight_decay)
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def evaluate(self, *unused: Any, **options: Any) -> dict[str, float]:
        """Measures the loss on the held-out texts."""
        loss = self.measure()
        metrics = {"eval_loss": loss}
        self.log(dict(metrics))
        say(f"epoch {self.state.epoch:.3g}: masked-word loss {loss:.4f} nats")
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _arguments(run: Path, texts: int, settings: PretrainSettings) -> TrainingArguments:
    steps = math.ceil(texts / settings.batch_size)  # an epoch
    return TrainingArguments(
        output_dir=str(run),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=max(1, round(0.06 * steps * settings.epochs)),
        weight_decay=0.01,
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,  # the best and the last
        metric_for_best_model="loss",
        greater_is_better=False,
        logging_steps=max(1, steps // 20),
        report_to=["tensorboard"],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings.seed,
        data_seed=settings.seed,
        disable_tqdm=True,
    )


def _masked_model(folder: Path, click: Any, seed: int) -> tuple[BertForMaskedLM, bool]:
    """Load the base with a head that guesses words, and tell if that was drawn; the encoder's weights are `click`'s."""
    torch.manual_seed(seed)
    with quiet_transformers():
        loaded: Any = BertForMaskedLM.from_pretrained(
            find_sources(folder).weights,
            config=click.config,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    model: BertForMaskedLM
    model, report = loaded
    model.bert.load_state_dict(click.bert.state_dict(), strict=False)
    return model, any(name.startswith(HEAD) for name in report["missing_keys"])


def _encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], length: int) -> list[Encoded]:
    encoded = tokenizer(list(texts), truncation=True, max_length=length, return_token_type_ids=True)
    return [
        {name: encoded[name][place] for name in ("input_ids", "token_type_ids", "attention_mask")}
        for place in range(len(texts))
    ]
