"""Tuning: searches for coefficients, pace and training settings, and what came out."""
