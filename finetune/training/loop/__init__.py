"""transformers' Trainer with what is ours: arguments, callbacks, what is measured on dev."""
