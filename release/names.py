"""The names that the graphs, the model repository and the manifests share; each stands once, here.

The same tensor names stand in `model_repository/*/config.pbtxt` (the contract with every client); a test holds both
against the graphs. Standard library only, and nothing else of this repository: the packed_cpu backend gets a copy of
this file, as of `hardware.py` and `expected.py`.
"""

REQUEST_INPUTS = ("input_ids", "token_type_ids", "lengths")
# Filled by Triton (`batch_input` in config.pbtxt): how many elements of each input every merged request brought.
COUNT_INPUTS = ("token_counts", "type_counts", "pair_counts")
GRAPH_INPUTS = REQUEST_INPUTS + COUNT_INPUTS
# The same of a checkpoint whose user text is computed once for all its candidates.
ONCE_REQUEST_INPUTS = ("input_ids", "user_lengths", "user_pairs", "lengths")
ONCE_COUNT_INPUTS = ("token_counts", "user_counts", "user_pair_counts", "pair_counts")
ONCE_GRAPH_INPUTS = ONCE_REQUEST_INPUTS + ONCE_COUNT_INPUTS
# What was computed of user texts, for the other candidates of a request: an output; and two inputs with defaults, which
# the packed_cpu backend alone sets: which of the earlier ones a user text is, from 1 (0: none, its tokens are there),
# and what was kept of these. (An input and an output of a graph cannot have the same name.)
KEPT = "kept"  # [1, users, layers * 2 * heads, longest, head size]: of each layer keys, then values
KEPT_PREFIXES = "kept_prefixes"  # [users]
KEPT_EARLIER = "kept_earlier"  # as KEPT
KEPT_INPUTS = (KEPT_PREFIXES, KEPT_EARLIER)
# TensorRT must know the longest pair of an execution as a shape: a request brings as many elements as its longest pair
# has tokens, and Triton gives the graph a tensor of the largest such size (BATCH_MAX_ELEMENT_COUNT_AS_SHAPE).
LONGEST = "longest"
LONGEST_SHAPE = "longest_shape"
TENSORRT_INPUTS = (*GRAPH_INPUTS, LONGEST, LONGEST_SHAPE)
# Where a user text is computed once, `longest` is that of the candidates' segments, and these are of the user texts'.
LONGEST_USER = "longest_user"
LONGEST_USER_SHAPE = "longest_user_shape"
ONCE_TENSORRT_INPUTS = (*ONCE_GRAPH_INPUTS, LONGEST, LONGEST_USER, LONGEST_SHAPE, LONGEST_USER_SHAPE)
LOGITS = "logits"
# Further outputs, of a checkpoint that was trained jointly; each is there only if the checkpoint has that head.
TOPIC_LOGITS = "topic_logits"  # [pairs, topics]
EMBEDDING = "embedding"  # [pairs, size], of length 1
PASSAGE_LOGITS = "passage_logits"  # [pairs, 1]: how much a passage counts among its document's passages
HEAD_OUTPUTS = (TOPIC_LOGITS, EMBEDDING, PASSAGE_LOGITS)

TOKENIZER_JSON = "tokenizer_json"
TOKENIZER_SHA256 = "tokenizer_sha256"
MAX_LENGTH = "max_length"
LABELS_JSON = "labels_json"
CLICK_LABEL = "click_label"
HEADS_JSON = "heads_json"
USER_TOKENS = "user_tokens"  # in `heads_json`: the tokens that a user text keeps, or null
EXPECTED = "expected"  # in `heads_json`: how the evaluation log's inputs were distributed (expected.py)

ONNX_MODEL = "clickbert_onnx"
TOKENIZER_MODEL = "clickbert_tokenizer"

MODEL_FILE = "model.onnx"
PLAN_FILE = "model.plan"
GATE_FILE = "gate.npz"
MANIFEST_FILE = "manifest.json"
MANIFEST_SUM_FILE = "manifest.json.sha256"  # as `sha256sum` writes it
CONFIG_FILE = "config.pbtxt"
VARIANTS = "configs"  # folder of further configs of a model, one of which a server may take instead
