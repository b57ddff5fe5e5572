"""Samples on storage: schema, images, index, ingest, and the embedded data sets."""
