"""Bring archives, image folders and rows of questions to storage."""
