"""Out of PyTorch: the parts of a model that can leave it, the formats, 8 bits."""
