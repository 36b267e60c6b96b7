"""Video diffusion transformers: single-device PyTorch, one file a model."""
