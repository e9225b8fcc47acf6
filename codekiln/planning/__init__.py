"""Estimates of memory, time and cost of a training run on hardware that is not here."""
