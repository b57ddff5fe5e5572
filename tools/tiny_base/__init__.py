"""The parts of ``tools/tiny_base/pretrain.py``: pictures, text, the vision stage and the join."""
