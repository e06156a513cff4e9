"""Channels to servers: addresses and TLS, proxies, whose turn it is, forks. The course of a call is in `calls`."""
