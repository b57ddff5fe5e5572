"""Typed settings, and how recipes and overrides become a config."""
