"""Measurements of raybal beside the plainest code that does the same work, as ratios in one run."""
