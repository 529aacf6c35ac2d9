"""Media bytes to arrays: video frames, spectrograms and images, and the judgement of damaged files."""
