"""Decoder-only transformers, their weights, and the formats that others load."""
