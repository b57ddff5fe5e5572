"""What a model thinks of given answers and of its inputs: measured with plain transformers.

The engines write and answer; here every token's probability and the entropy of the whole distribution
at its place are wanted, and the embeddings inside the model, which engines do not give.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from rdmldg_ray.chains.format import display_name
from rdmldg_ray.chains.pathways import PathwayPrompts
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.images import decode_image
from rdmldg_ray.evaluation.analyses import EMBEDDING_SCHEMA, TOKEN_SCHEMA
from rdmldg_ray.models.families import family_of
from rdmldg_ray.models.folder import model_folder
from rdmldg_ray.models.loading import load_base, load_merged, load_processor
from rdmldg_ray.runtime.remote import in_tasks
from rdmldg_ray.storage import download_folder, read_images


class Probe:
    """Base plus adapter, on the GPU where the workers have one."""

    def __init__(self, config: Config, class_names: list[str], adapter: str | None):
        base = model_folder(config.model.path)
        self.family = family_of(base)
        model: Any
        if adapter is None:
            model = load_base(base, config.model)
        else:
            with tempfile.TemporaryDirectory() as folder:
                model = load_merged(base, download_folder(adapter, Path(folder)), config.model)
        self.device = torch.device("cuda" if config.workers.gpus_per_worker > 0 else "cpu")
        self.model = model.to(self.device).eval()
        self.prompts = PathwayPrompts(load_processor(base), class_names, config.model.mm_processor_kwargs)

    @torch.inference_mode()
    def score(
        self, image: Image.Image, chain: str, label: str, prompts: PathwayPrompts | None = None
    ) -> Iterator[dict[str, Any]]:
        """``target``, ``position``, ``token``, ``logprob`` and ``entropy`` of each token of the chain
        under q_reason and of the class under q_cls, the end of the turn included.

        Args:
            prompts: of the sample, where it has a question of its own.
        """
        prompts = prompts or self.prompts
        encoded = prompts.encode([image])
        [prefix] = encoded.prefixes
        answers = {
            "chain": (prompts.reasoning_tail, prompts.target_ids(chain)),
            "class": (prompts.direct_tail, prompts.target_ids(display_name(label))),
        }
        for name, (tail, target) in answers.items():
            logits = self._logits(prefix + tail + target, encoded.model_inputs, len(target) + 1)
            logprobs = logits[:-1].float().log_softmax(-1)
            entropy = -(logprobs.exp() * logprobs).nan_to_num(0.0).sum(-1)
            chosen = logprobs.gather(1, torch.tensor(target, device=self.device)[:, None]).flatten()
            tokens = prompts.processor.tokenizer.convert_ids_to_tokens(target)
            for position, values in enumerate(zip(tokens, chosen.tolist(), entropy.tolist(), strict=True)):
                token, logprob, spread = values
                yield {
                    "target": name,
                    "position": position,
                    "token": token,
                    "logprob": logprob,
                    "entropy": spread,
                }

    @torch.inference_mode()
    def embed_image(self, image: Image.Image) -> np.ndarray:
        """(d,) of unit length: the mean over the image's tokens as the connector hands them on."""
        encoded = self.prompts.encode([image])
        found: list[torch.Tensor] = []
        connector = self.model.get_submodule(self.family.connector)
        hook = connector.register_forward_hook(lambda module, inputs, output: found.append(output))
        try:
            self._logits(encoded.prefixes[0], encoded.model_inputs, 1)
        finally:
            hook.remove()
        return _unit(found[0].flatten(end_dim=-2).mean(dim=0))

    @torch.inference_mode()
    def embed_patches(self, image: Image.Image) -> np.ndarray:
        """(d,) the mean over the image's patches as the vision encoder hands them to the connector."""
        encoded = self.prompts.encode([image])
        inputs = {name: value.to(self.device) for name, value in encoded.model_inputs.items()}
        found: list[torch.Tensor] = []
        connector = self.model.get_submodule(self.family.connector)
        hook = connector.register_forward_pre_hook(
            lambda module, args, kwargs: found.append([*args, *kwargs.values()][0]), with_kwargs=True
        )
        try:
            self.model.get_image_features(**inputs)
        finally:
            hook.remove()
        return found[0].flatten(end_dim=-2).mean(dim=0).float().cpu().numpy()

    @torch.inference_mode()
    def embed_text(self, text: str) -> np.ndarray:
        """(d,) of unit length: the mean over the text's tokens of the decoder's last hidden state, the
        text alone, without image or prompt."""
        ids = self.prompts.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        decoder = self.model.get_submodule(self.family.decoder)
        hidden = decoder(input_ids=torch.tensor([ids], device=self.device), use_cache=False)
        return _unit(hidden.last_hidden_state[0].mean(dim=0))

    def _logits(self, ids: list[int], model_inputs: dict[str, torch.Tensor], keep: int) -> torch.Tensor:
        input_ids = torch.tensor([ids], device=self.device)
        inputs = {name: value.to(self.device) for name, value in model_inputs.items()}
        if self.family.positions == "mrope":
            inputs["mm_token_type_ids"] = (input_ids == self.model.config.image_token_id).int()
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            logits_to_keep=keep,
            use_cache=False,
            **inputs,
        )
        logits: torch.Tensor = outputs.logits[0]
        return logits


def _unit(vector: torch.Tensor) -> np.ndarray:
    found = vector.float().cpu().numpy()
    return found / np.linalg.norm(found)


def probe(
    config: Config, class_names: list[str], model: str, adapter: str | None, samples: pa.Table
) -> tuple[pa.Table, pa.Table]:
    """Measure one model: tokens in ``TOKEN_SCHEMA`` and embeddings in ``EMBEDDING_SCHEMA``.

    Args:
        samples: an index with the columns ``chain`` and ``held_out`` added.
    """
    found = Probe(config, class_names, adapter)
    tokens, embeddings = [], []
    for row, data in zip(samples.to_pylist(), read_images(samples), strict=True):
        image = decode_image(row["id"], data)
        known = {"model": model, "id": row["id"], "domain": row["domain"]}
        for token in found.score(image, row["chain"], row["label"], found.prompts.asking(row)):
            tokens.append({**known, "held_out": row["held_out"], **token})
        embeddings.append({**known, "kind": "image", "vector": found.embed_image(image)})
        embeddings.append({**known, "kind": "chain", "vector": found.embed_text(row["chain"])})
    return (
        pa.Table.from_pylist(tokens, schema=TOKEN_SCHEMA),
        pa.Table.from_pylist(embeddings, schema=EMBEDDING_SCHEMA),
    )


def probe_models(
    config: Config, class_names: list[str], adapters: dict[str, str | None], samples: pa.Table
) -> tuple[pa.Table, pa.Table]:
    """``probe`` for several models, each a Ray task with a training worker's share of the cluster.

    Args:
        adapters: by a model's name, the location of its adapter; None for the base.
    """
    workers = config.workers
    calls = [(config, class_names, *model, samples) for model in adapters.items()]
    measured = in_tasks(probe, calls, workers.cpus_per_worker, workers.gpus_per_worker)
    tokens, embeddings = zip(*measured, strict=True)
    return pa.concat_tables(tokens), pa.concat_tables(embeddings)
