"""RD-MLDG on Ray: domain generalization of multimodal LLMs by reasoning."""

__version__ = "0.1.0"
