"""Codekiln turns source code into code models."""

__version__ = "0.1.0"
