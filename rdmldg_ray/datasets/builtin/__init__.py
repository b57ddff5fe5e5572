"""The data sets that are in the package."""
