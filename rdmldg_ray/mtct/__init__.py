"""Multi-Task Cross-Training: both pathways of one image in one sequence, one loss, DeepSpeed."""
