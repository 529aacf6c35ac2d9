"""Encoders, fusion and the classifier that joins them."""
