"""Hugging Face folders as click models: read, checked and saved."""
