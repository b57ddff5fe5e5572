"""The benchmark: data sets, their splits, and DomainBed's protocol."""
