"""One HTML file that shows what an experiment did, and the same numbers as TensorBoard event files."""
