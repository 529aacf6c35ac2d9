"""Data sets as they are distributed: one layout a file, from folder tree and lists to a manifest."""
