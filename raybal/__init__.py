"""raybal: distributed multimodal active learning that keeps every modality learning."""

__version__ = "0.1.0"
