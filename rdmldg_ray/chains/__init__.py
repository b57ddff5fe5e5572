"""DomainBed-Reasoning: the five-stage chain format, the prompts and the teachers."""
