"""The wire formats of the server, one per file: what each client sends and reads."""
