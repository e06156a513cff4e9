"""The names of what a published version holds: those of `release/names.py` in the repository; a test compares both."""

CONFIG_FILE = "config.pbtxt"
GRAPH_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
MANIFEST_SUM_FILE = "manifest.json.sha256"

CPU_MODELS = ("clickbert_onnx", "clickbert_onnx_int8")  # those whose graphs ONNX Runtime computes

# Parameters of config.pbtxt: how the server, and this room, cut a request.
CHUNK_ELEMENTS = "chunk_elements"

USER_PAIRS = "user_pairs"
# What a graph computed of queries, for their other documents: an output, and two inputs that may be left out.
KEPT = "kept"  # [1, queries, parts, longest, size]
KEPT_EARLIER = "kept_earlier"  # as KEPT
KEPT_PREFIXES = "kept_prefixes"  # [queries], which of these stands for each query, from 1 (0: its tokens are there)

# Fields of a manifest.
FILES, TOKENIZER_SHA256, USER_TOKENS = "files", "tokenizer_sha256", "user_tokens"

# A checkpoint's folder.
CHECKPOINT_CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
ADAPTER = "adapter_config.json"
HEAD_SETTINGS = "clickbert.json"
ATTENTION_FIELDS = ("clickbert_attention", "clickbert_user_tokens")
