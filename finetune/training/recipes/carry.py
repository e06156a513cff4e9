"""Makes a checkpoint faster by a short training on its own scores: `user_once` for full attention, and fewer layers.

It is distillation with the checkpoint as its own teacher: the click head learns to give the same scores under the
other mask and from the layers that are left, and nothing from clicks. Further heads go on learning by their own losses,
the embedding from clicks, too. What else the checkpoint is (labels, heads, tokenizer, longest pair) stays.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from finetune.checkpoint.attention import user_tokens
from finetune.checkpoint.base_model import LABELS
from finetune.checkpoint.files import CheckpointError
from finetune.checkpoint.heads import HeadSettings, read_heads
from finetune.checkpoint.load import label_names, load_checkpoint
from finetune.data.clicklog import find_split, read_click_log
from finetune.names import FULL_ATTENTION, NONE, SIMILARITY, TOPIC, USER_ONCE
from finetune.training.build import head_settings
from finetune.training.loop.dev import Metrics
from finetune.training.recipes.distil import Teachers
from finetune.training.run import train
from finetune.training.settings import SettingsError, TrainSettings


def carry(data: Path, folder: Path, output: Path, settings: TrainSettings, *, restart: bool = False) -> Metrics:
    """Train the checkpoint in `folder` on its own scores of the texts of `data`, and save it as `output`.

    It has `user_once` then, and with `settings.layers` fewer of its layers. If it loses layers it may have `user_once`
    already, or keep full attention, if the settings say so.

    Settings that the checkpoint decides are its own. Whether one was given or is a default cannot be seen, so only
    those that are neither the default nor the checkpoint's are refused.

    Returns:
        The dev metrics of what was saved.

    Raises:
        CheckpointError: it cannot be used, has `user_once` already and keeps its layers, or was not made by `train`.
        SettingsError: the settings or the data contradict what it is.
        Others: as `train`.
    """
    model, _, longest = load_checkpoint(folder)
    layers = int(model.config.num_hidden_layers)
    prunes = settings.layers is not None and settings.layers < layers
    is_once = user_tokens(model.config) is not None
    if is_once and not prunes:
        raise CheckpointError(
            f"{folder}: has the attention {USER_ONCE} already; give one with full attention, or --layers with fewer "
            f"than its {layers}"
        )
    if label_names(model) not in LABELS.values():
        raise CheckpointError(
            f"{folder}: its labels are {label_names(model)}; only a checkpoint of `python -m finetune train` can be "
            "carried over"
        )
    heads = read_heads(folder, int(model.config.hidden_size)).settings
    wants_full = settings.attention == FULL_ATTENTION
    if wants_full and not prunes:
        raise SettingsError(
            f"--attention is {FULL_ATTENTION!r}, but --from-checkpoint {folder} gets {USER_ONCE!r}, unless --layers is "
            f"below {layers}"
        )
    own = _own_settings(
        heads, labels=len(label_names(model)), max_length=longest, layers=settings.layers if prunes else layers,
        attention=FULL_ATTENTION if wants_full and not is_once else USER_ONCE,
    )  # fmt: skip
    for name, value in own.items():
        given = getattr(settings, name)
        if given not in (value, asdict(TrainSettings())[name]):
            raise SettingsError(
                f"--{name.replace('_', '-')} is {given!r}, but --from-checkpoint {folder} has {value!r}; leave it out"
            )
    settings = replace(settings, **own | ({} if prunes else {"layers": None}))  # it has its layers already
    if head_settings(read_click_log(find_split(data, "train")), settings) != heads:
        raise SettingsError(
            f"{folder}: has the topics {', '.join(heads.topics)}; to carry it over, the training split must have the "
            "same ones: give the data that it was trained on"
        )
    # Resolved, as a folder's name may also be that of a base ("minilm").
    return train(data, str(folder.resolve()), output, settings, restart=restart, teachers=Teachers((folder,), 1.0))


def _own_settings(heads: HeadSettings, **others: Any) -> dict[str, Any]:
    """The settings that a checkpoint decides. The click head learns nothing from clicks, so they have no bias."""
    own = {"full_first": 0.0, "position_bias": NONE, **others}
    tasks = ((TOPIC, heads.topics), (SIMILARITY, heads.embedding_size))
    own["understanding"] = tuple(task for task, head in tasks if head)
    if heads.embedding_size:
        own["embedding_size"] = heads.embedding_size
    own["passages"] = heads.passages.aggregate if heads.passages else NONE
    if heads.passages:
        own |= {"passage_overlap": heads.passages.overlap, "passage_best": heads.passages.best}
    return own
