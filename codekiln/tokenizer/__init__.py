"""Tokenizers: text to ids and back, and infilling formats."""
