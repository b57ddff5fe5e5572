"""Self-Aligned Reasoning Regularization: the model writes, the filter keeps."""
