"""What an export changes in a model's config.pbtxt and its variants: the tensors of the newest version.

What the user may have written stays, but for the number of logits. All else stands in a block at the end. The config in
git is that of a checkpoint with full attention; where the user text is computed once, its inputs are commented out, and
the block has others. The next export takes all that back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from release.names import (
    HEADS_JSON,
    LOGITS,
    ONCE_COUNT_INPUTS,
    ONCE_REQUEST_INPUTS,
    REQUEST_INPUTS,
    TOKENIZER_MODEL,
)

# What an export adds to a config lies between these lines, at its end.
BEGIN = "# What follows is written by `python -m export`: tensors of the newest version. The next export replaces it.\n"
END = "# Here ends what `python -m export` writes.\n"
BLOCK = re.compile(
    r"\n# What follows is written by `python -m export`[^\n]*\n.*?" + re.escape(END), re.DOTALL
)  # former releases wrote another first line
# What begins a line that holds for full attention only, while the user text is computed once.
OFF = "#full "
# The parts of a config that name inputs, each from the beginning of a line.
TYPES = REQUEST_INPUTS[1]
FULL_PARTS = re.compile(
    rf'^(?:(?:input|batch_input|model_warmup) \[.*?^\]|parameters {{ key: "max_elements\.{TYPES}"[^\n]*)\n',
    re.DOTALL | re.MULTILINE,
)
LENGTHS = REQUEST_INPUTS[-1]
MOST_PAIRS = re.compile(rf'"max_elements\.{LENGTHS}" value {{ string_value: "(\d+)"')


class ConfigError(ValueError):
    """A config cannot be changed; says which, and what to do."""


def change_config(file: Path, model: str, widths: Mapping[str, int], *, once: bool) -> str:
    """The text of a model's config, with the tensors that the new version has.

    Args:
        file: the config.
        model: its name.
        widths: the click model's outputs, each with how many numbers a pair has.
        once: the click model computes a user text once.

    Raises:
        ConfigError: the config is not readable, or not as it is in git.
    """
    text = BLOCK.sub("", file.read_text(encoding="utf-8"))
    text = re.sub(f"^{OFF}", "", text, flags=re.MULTILINE)
    outputs = read_outputs(text, file)
    if model == TOKENIZER_MODEL:
        further = {name: "TYPE_UINT8 dims: [ -1 ]" for name in (HEADS_JSON,) if name not in outputs}
        return text + block("", further, "") if further else text
    if LOGITS not in outputs:
        return text
    labels = widths[LOGITS]
    if outputs[LOGITS] != labels:
        text = re.sub(rf'(name: "{LOGITS}"[^}}]*dims: \[ -1, )\d+( \])', rf"\g<1>{labels}\g<2>", text)
        if read_outputs(text, file)[LOGITS] != labels:
            raise ConfigError(f'{file}: set the dims of the output "{LOGITS}" to [ -1, {labels} ], then export again')
    further = {name: f"TYPE_FP32 dims: [ -1, {width} ]" for name, width in widths.items() if name != LOGITS}
    if twice := further.keys() & outputs.keys():
        raise ConfigError(f"{file}: remove the output {', '.join(sorted(twice))}, which the export writes itself")
    inputs = ""
    if once:
        most = MOST_PAIRS.search(text)
        inputs = once_inputs(int(most[1]) if most else None, chunked='key: "chunk_by"' in text)
        text = FULL_PARTS.sub(lambda part: re.sub("^", OFF, part[0][:-1], flags=re.MULTILINE) + "\n", text)
    if further or inputs:
        text += block(inputs, further, LENGTHS)
    if once and (names := tuple(value.name for value in parse(text, file).input)) != ONCE_REQUEST_INPUTS:
        raise ConfigError(
            f"{file}: the inputs would be {', '.join(names)} for this checkpoint, instead of "
            f'{", ".join(ONCE_REQUEST_INPUTS)}; write the part "input [" as it is in git, then export again'
        )
    return text


def once_inputs(most_pairs: int | None, *, chunked: bool) -> str:
    """The part of a config that has the inputs of a graph which computes a user text once.

    `most_pairs`: of a request, if the config limits them; None: it does not. `chunked`: requests are cut into chunks.
    """
    comments = (
        "`user [SEP]`, then `[CLS] candidate [SEP]` of its pairs",
        "tokens of each `user [SEP]`; 0: single texts",
        "pairs of each user",
        "tokens of each `[CLS] candidate [SEP]`",
    )
    entries = [
        f'  {{ name: "{name}" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true }}'
        for name in ONCE_REQUEST_INPUTS
    ]
    commas = (*[","] * (len(entries) - 1), "")
    inputs = [f"{entry}{comma}  # {comment}" for entry, comma, comment in zip(entries, commas, comments, strict=True)]
    counts = [
        f'  {{ kind: BATCH_ELEMENT_COUNT target_name: "{count}" data_type: TYPE_INT32 source_input: "{name}" }}'
        for count, name in zip(ONCE_COUNT_INPUTS, ONCE_REQUEST_INPUTS, strict=True)
    ]
    limits = [
        f'parameters {{ key: "max_elements.{name}" value {{ string_value: "{most_pairs}" }} }}'
        for name in ONCE_REQUEST_INPUTS[1:3]
        if most_pairs is not None
    ]
    if chunked:  # the packed_cpu backend computes a user text with the request's first chunk
        keys = zip(("prefix_lengths", "prefix_shares"), ONCE_REQUEST_INPUTS[1:3], strict=True)
        limits += [f'parameters {{ key: "{key}" value {{ string_value: "{name}" }} }}' for key, name in keys]
    # warmup/eight holds an 8, warmup/eights eight of them: 8 pairs of a user text, 16 tokens each with it.
    eight, eights = '[ 1 ] input_data_file: "eight"', '[ 8 ] input_data_file: "eights"'
    data = ("[ 72 ] zero_data: true", eight, eight, eights)
    warmup = [
        f'    inputs {{ key: "{name}" value {{ data_type: TYPE_INT32 dims: {values} }} }}'
        for name, values in zip(ONCE_REQUEST_INPUTS, data, strict=True)
    ]
    lines = [
        f"# The user text is computed once for all its pairs. Above, lines with {OFF.strip()} are for full attention.",
        "input [", *inputs, "]",
        "batch_input [", ",\n".join(counts), "]",
        *limits,
        "model_warmup [", "  {", '    name: "eight_pairs"', "    batch_size: 1", *warmup, "  }", "]",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def block(inputs: str, outputs: Mapping[str, str], source: str) -> str:
    """What an export adds to a config: `inputs`, and outputs, given by name with type and dims.

    An output has as many rows as `source` has elements. One that a former version lacks is left out of its answers by
    the packed_cpu backend (`optional_outputs`).
    """
    entries = ",\n".join(f'  {{ name: "{name}" data_type: {kind} }}' for name, kind in outputs.items())
    scattered = ",\n".join(
        f'  {{ kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: "{name}" source_input: "{source}" }}'
        for name in outputs
        if source
    )
    optional = f'parameters {{ key: "optional_outputs" value {{ string_value: "{" ".join(outputs)}" }} }}\n'
    batch = f"batch_output [\n{scattered}\n]\n" if scattered else ""
    further = f"output [\n{entries}\n]\n{batch}{optional}" if outputs else ""
    return f"\n{BEGIN}{inputs}{further}{END}"


def read_outputs(text: str, file: Path) -> dict[str, int]:
    """The outputs of a config's text, each with its last dimension.

    Raises:
        ConfigError: the text is no config.
    """
    return {output.name: int(output.dims[-1]) for output in parse(text, file).output}


def parse(text: str, file: Path) -> model_config_pb2.ModelConfig:
    """A config's text. Raises ConfigError if it is none."""
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as exc:
        raise ConfigError(f"{file} is not a valid model configuration: {exc}; correct it, then export again") from exc
