"""The forms that rerank servers speak, one a file: how a request is read, and how answers and errors are written."""
