"""Predictions by both pathways, and accuracy by DomainBed's protocol."""
