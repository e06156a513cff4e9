"""Hugging Face folders: read, checked, written."""
