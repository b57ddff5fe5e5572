"""Model families, LoRA, loading, and export for serving."""
