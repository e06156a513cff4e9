"""Saves a checkpoint folder whole or not at all: written beside its name, read back, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from finetune.checkpoint.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, WEIGHTS, CheckpointError
from finetune.checkpoint.heads import Heads, read_heads, write_heads
from finetune.checkpoint.load import load_checkpoint
from finetune.checkpoint.quiet import quiet_transformers


def check_output(folder: Path) -> None:
    """Refuse to replace anything but a checkpoint or an empty folder; called before training, not after.

    Raises:
        CheckpointError: the path is a file, or a folder with other things in it.
    """
    if folder.is_dir() and any(folder.iterdir()):
        kinds = ((CONFIG, WEIGHTS), (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
        if not any(all((folder / name).is_file() for name in names) for names in kinds):
            raise CheckpointError(
                f"{folder}: is not empty and no checkpoint, so it is not replaced; choose another --output"
            )
    elif folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file; choose another --output")


def save_checkpoint(
    model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, folder: Path, heads: Heads | None = None
) -> None:
    """Save a Hugging Face folder, with the further heads if there are any, replacing an older checkpoint.

    An error or Ctrl-C leaves `folder` as it was; a kill between the two renames leaves it as `.NAME.older-PID`. Other
    files in an older checkpoint's folder are removed with it.

    Raises:
        CheckpointError: `folder` exists and is no checkpoint, or what was written cannot be read back.
        OSError: the disk is full, or the folder cannot be written.
    """
    with replacing(folder) as draft:
        # Encoding leaves truncation on, and tokenizer.json would say that it is the model's own.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        with quiet_transformers():
            model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
        if heads is not None:
            write_heads(heads, draft)
        loaded, *_ = load_checkpoint(draft)
        read_heads(draft, int(loaded.config.hidden_size))


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write a checkpoint into, which takes the place of `folder` if the block ends well.

    Raises:
        CheckpointError: `folder` exists and is no checkpoint.
    """
    check_output(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.draft-{os.getpid()}")
    older = folder.with_name(f".{folder.name}.older-{os.getpid()}")
    try:
        draft.mkdir()
        yield draft
        for weights in draft.rglob("*.safetensors"):
            # safetensors makes its files readable by the owner alone; who exports or serves may be another user.
            weights.chmod((draft / CONFIG).stat().st_mode)
        if folder.exists():
            folder.rename(older)
        draft.rename(folder)
    finally:
        if older.exists() and not folder.exists():
            older.rename(folder)
        shutil.rmtree(older, ignore_errors=True)
        shutil.rmtree(draft, ignore_errors=True)
