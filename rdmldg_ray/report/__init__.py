"""What people look at. Reads results only; imports neither torch nor ray."""
