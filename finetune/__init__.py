"""Click log to checkpoint: `python -m finetune` makes a sample click log, fine-tunes a BERT, evaluates it."""
