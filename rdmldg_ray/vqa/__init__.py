"""Data sets of questions: rows of image, question, options, answer and domain."""
