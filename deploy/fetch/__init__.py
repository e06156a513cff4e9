"""Fetches a published model repository to where a server starts. Run it as `python -m deploy fetch`."""
