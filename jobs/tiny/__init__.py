"""The parts of ``jobs/pretrain_tiny.py``: pictures, text, the vision stage and the join."""
