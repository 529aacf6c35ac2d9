"""Media bytes to arrays: video frames, log-mel spectrograms and images, and the judgement of damaged files."""
