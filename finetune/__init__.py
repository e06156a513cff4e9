"""From a click log to a checkpoint: `python -m finetune` writes a sample log, fine-tunes a BERT and evaluates it."""
