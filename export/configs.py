"""What an export changes in a model's config.pbtxt and its variants: the tensors of the newest version.

What the user may have written stays, but for the number of logits. All else stands in a block at the end. Outside of it
a config is that of a checkpoint with full attention; where the user text is computed once, its inputs are commented
out, and the block has others. The next export takes all that back. In git the CPU engines' configs are as the demo's
export writes them, so that it changes nothing there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from release.names import (
    HEADS_JSON,
    LOGITS,
    LONGEST,
    LONGEST_SHAPE,
    LONGEST_USER,
    LONGEST_USER_SHAPE,
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
OFF = "#clickbert-full: "
# The parts of a config that an export replaces for such a checkpoint, and the limit that it takes away.
ONCE_PARTS = ("input", "batch_input", "model_warmup")
TYPES_LIMIT = f"max_elements.{REQUEST_INPUTS[1]}"
LENGTHS = REQUEST_INPUTS[-1]
PAIRS_LIMIT, TOKENS_LIMIT = f"max_elements.{LENGTHS}", f"max_elements.{REQUEST_INPUTS[0]}"
CHUNKS = "chunk_by"  # packed_cpu cuts requests into chunks, and computes a user text with the first of a request
# There a request may have so many times as many pairs if its user text is computed once: it is, for each request. All
# the same they are no more than its limit of tokens holds, with the longest pair that a BERT has.
MORE_PAIRS, LONGEST_PAIR = 4, 512
# Strings and comments, which may hold brackets, and brackets.
TOKENS = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|#[^\n]*|[\[\]{}]')


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
    text, blocks = BLOCK.subn("", file.read_text(encoding="utf-8"))
    if blocks:
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
        before = parse(text, file)
        inputs = once_inputs(before)
        text = switch_off(text, {TYPES_LIMIT, PAIRS_LIMIT} if CHUNKS in before.parameters else {TYPES_LIMIT})
        check_once(before, inputs, parse(f"{text}\n{inputs}", file), file)
    return text + block(inputs, further, LENGTHS) if further or inputs else text


def switch_off(text: str, limits: Set[str]) -> str:
    """A config's text with the lines commented out that hold for full attention only, these limits among them."""
    lines = []  # from where to where
    depth = begin = 0
    for token in TOKENS.finditer(text):
        if token[0] in ("[", "{"):
            if not depth:
                begin = text.rfind("\n", 0, token.start()) + 1
            depth += 1
        elif token[0] in ("]", "}"):
            depth -= 1
            end = text.find("\n", token.end())
            if not depth:
                lines.append((begin, end if end >= 0 else len(text)))
    for begin, end in reversed(lines):
        try:
            found = text_format.Parse(text[begin:end], model_config_pb2.ModelConfig())
        except text_format.ParseError:  # it shares a line with something else; `check_once` sees what it is
            continue
        if limits & set(found.parameters) or any(getattr(found, part) for part in ONCE_PARTS):
            text = text[:begin] + re.sub("^", OFF, text[begin:end], flags=re.MULTILINE) + text[end:]
    return text


def check_once(
    before: model_config_pb2.ModelConfig, inputs: str, after: model_config_pb2.ModelConfig, file: Path
) -> None:
    """Checks that a config has become that of a checkpoint whose user text is computed once, and nothing else.

    Args:
        before: for full attention.
        inputs: what was added.
        after: with that.
        file: the config.

    Raises:
        ConfigError: a part is another one; says which.
    """
    expected = model_config_pb2.ModelConfig()
    expected.CopyFrom(before)
    for part in ONCE_PARTS:
        expected.ClearField(part)
    expected.parameters.pop(TYPES_LIMIT, None)
    expected.MergeFrom(parse(inputs, file))
    if after != expected:
        names = (field.name for field in after.DESCRIPTOR.fields)
        parts = [name for name in names if getattr(after, name) != getattr(expected, name)]
        raise ConfigError(
            f"{file}: for this checkpoint, whose user text is computed once, the export cannot replace what stands in "
            f"or beside {', '.join(parts)}; write that part as it is in git, then export again"
        )


def once_inputs(config: model_config_pb2.ModelConfig) -> str:
    """What a config gets instead of its inputs if the graph computes a user text once.

    As in `config`, requests have a limit, are cut into chunks, say how long their longest texts are (TensorRT), and the
    model is warmed up, or not.
    """
    # With what each holds in the warm-up: 8 pairs of a user text, 16 tokens each with it. warmup/eight holds an 8,
    # warmup/eights eight of them.
    eight = '[ 1 ] input_data_file: "eight"'
    about = (
        ("`user [SEP]`, then `[CLS] candidate [SEP]` of its pairs", "[ 72 ] zero_data: true"),
        ("tokens of each `user [SEP]`; 0: single texts", eight),
        ("pairs of each user", eight),
        ("tokens of each `[CLS] candidate [SEP]`", '[ 8 ] input_data_file: "eights"'),
    )
    inputs = dict(zip(ONCE_REQUEST_INPUTS, about, strict=True))
    shapes = {LONGEST: LONGEST_SHAPE, LONGEST_USER: LONGEST_USER_SHAPE}
    if shaped := LONGEST in {value.name for value in config.input}:
        inputs[LONGEST] = ("as many zeros as the longest candidate has tokens, of `lengths`", "[ 8 ] zero_data: true")
        inputs[LONGEST_USER] = ("the same of `user_lengths`, but at least one", "[ 8 ] zero_data: true")
    lasts = [*[","] * (len(inputs) - 1), ""]
    entries = [
        f'  {{ name: "{name}" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true }}{last}  # {comment}'
        for (name, (comment, _)), last in zip(inputs.items(), lasts, strict=True)
    ]
    made = [("BATCH_ELEMENT_COUNT", *pair) for pair in zip(ONCE_REQUEST_INPUTS, ONCE_COUNT_INPUTS, strict=True)]
    made += [("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", *pair) for pair in shapes.items() if shaped]
    batch = [
        f'  {{ kind: {kind} target_name: "{target}" data_type: TYPE_INT32 source_input: "{name}" }}'
        for kind, name, target in made
    ]
    written = config.parameters
    limited = {}
    if PAIRS_LIMIT in written:
        limited = dict.fromkeys(ONCE_REQUEST_INPUTS[1:3], written[PAIRS_LIMIT].string_value)
    if limited and CHUNKS in written:
        limited = dict.fromkeys(ONCE_REQUEST_INPUTS[1:], most_pairs(written))
    if f"max_elements.{LONGEST}" in written:
        limited[LONGEST_USER] = written[f"max_elements.{LONGEST}"].string_value
    limits = [
        f'parameters {{ key: "max_elements.{name}" value {{ string_value: "{most}" }} }}'
        for name, most in limited.items()
    ]
    if CHUNKS in written:
        keys = zip(("prefix_lengths", "prefix_shares"), ONCE_REQUEST_INPUTS[1:3], strict=True)
        limits += [f'parameters {{ key: "{key}" value {{ string_value: "{name}" }} }}' for key, name in keys]
    filled = [
        f'    inputs {{ key: "{name}" value {{ data_type: TYPE_INT32 dims: {values} }} }}'
        for name, (_, values) in inputs.items()
    ]
    warmup = ["model_warmup [", "  {", '    name: "eight_pairs"', "    batch_size: 1", *filled, "  }", "]"]
    lines = [
        f"# The user text is computed once for all its pairs. Above, lines with {OFF.strip()} are for full attention.",
        "input [", *entries, "]",
        "batch_input [", ",\n".join(batch), "]",
        *limits,
        *(warmup if config.model_warmup else ()),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def most_pairs(written: Mapping[str, model_config_pb2.ModelParameter]) -> str:
    """The limit of a request's pairs where its user text is computed once, and it is cut into chunks."""
    pairs, tokens = (written[name].string_value if name in written else "" for name in (PAIRS_LIMIT, TOKENS_LIMIT))
    if not (pairs.isdecimal() and tokens.isdecimal()):
        return pairs
    return str(max(int(pairs), min(MORE_PAIRS * int(pairs), int(tokens) // LONGEST_PAIR)))


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
