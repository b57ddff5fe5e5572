"""What vLLM's workers learn to do: take merged weights that are nowhere written."""

from typing import Any

import torch


class MergingWorker:
    """Added to vLLM's worker by its setting ``worker_extension_cls``, for ``collective_rpc``."""

    def reload_merged(self: Any, merge: dict[str, Any], dtype: str) -> None:
        """Replace the weights in place by those of a ``models.merging.Merge``, given as a dictionary.

        Every worker of an engine reads the base's files, from memory as long as the node keeps them there,
        and what was trained; where several share a model, each keeps its own part of every weight.
        """
        from vllm.config import set_current_vllm_config

        from rdmldg_ray.models.merging import Merge, merged_weights

        weights = merged_weights(Merge(**merge), getattr(torch, dtype), self.device)
        with set_current_vllm_config(self.vllm_config):
            self.model_runner.reload_weights(weights_iterator=weights)
