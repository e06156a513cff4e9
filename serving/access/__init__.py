"""Who may call what: TLS, the callers' token, the admin token."""
