"""Chains by a teacher: any OpenAI-compatible endpoint, asked, paid and journalled."""
