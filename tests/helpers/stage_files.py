"""What a training and a round leave on storage, small but whole, for what looks at it."""

import json

import numpy as np
import pyarrow as pa
from safetensors.numpy import save

from rdmldg_ray.models.parity import PARITY_FILE
from rdmldg_ray.mtct.batching import BatchPlan
from rdmldg_ray.storage import join, write_bytes, write_json, write_table

MODULES = ("model.vision.q_proj", "model.text.q_proj")


def write_training(store, stage, config, samples, modules=MODULES):
    """An adapter of rank 2, its parity set and the metrics of every step; returns the stage's summary."""
    adapter = store.adapter_uri(stage.held_out, stage.model)
    tensors = {
        f"base_model.model.{name}.{matrix}.weight": np.zeros((2, 3), np.float32)
        for name in modules
        for matrix in ("lora_A", "lora_B")
    }
    write_bytes(join(adapter, "adapter_model.safetensors"), save(tensors))
    adapter_config = {"peft_type": "LORA", "target_modules": list(modules)}
    write_json(join(adapter, "adapter_config.json"), adapter_config)
    write_table(join(adapter, PARITY_FILE), pa.table({"id": ["a"], "chain": ["b"], "logprobs": [[-1.0]]}))
    training = config.mtct if stage.kind == "mtct" else config.sarr.training
    steps = BatchPlan.make(samples, config.workers.num_workers, training, 0).total_steps
    lines = [json.dumps({"step": step, "samples_per_s": 1.0, "resumed_at": 0}) for step in range(steps)]
    write_bytes(store.metrics_uri(stage.held_out, stage.model), "".join(f"{x}\n" for x in lines).encode())
    return {"samples": samples, "without_chain": 0}
