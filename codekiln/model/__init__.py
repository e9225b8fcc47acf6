"""Decoder-only transformers, and model directories in the Hugging Face layout."""
