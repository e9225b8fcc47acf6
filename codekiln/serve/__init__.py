"""The HTTP server and the playground."""
