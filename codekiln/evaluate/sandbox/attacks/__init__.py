"""Programs that attack the sandbox, and legitimate ones that it must not harm."""
