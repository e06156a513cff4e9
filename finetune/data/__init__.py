"""The click log: its form, its checks, its splits."""
