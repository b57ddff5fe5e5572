"""DomainBed-Reasoning: the five-section chain format, the prompts and the teachers."""
