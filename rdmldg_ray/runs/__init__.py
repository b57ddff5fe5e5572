"""A run: its layout on storage, its folds, and what they leave."""
