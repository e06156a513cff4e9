"""The served model against others that rank with the same checkpoint."""
