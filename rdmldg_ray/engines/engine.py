"""One vLLM engine, to be run as a Ray actor."""

import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from rdmldg_ray.chains.prompts import display_name
from rdmldg_ray.config import Config, Pathway
from rdmldg_ray.models.folder import model_folder
from rdmldg_ray.storage import download_folder

if TYPE_CHECKING:
    from rdmldg_ray.chains.pathways import PathwayPrompts


@dataclass(frozen=True)
class Request:
    """What an engine is asked to write for each image."""

    pathway: Pathway
    attempt: int
    """Number of the draw, from 0; with the sample's id and the seed it fixes the randomness."""
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int


ANSWER_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("attempt", pa.int32()),
        ("text", pa.string()),
        ("num_tokens", pa.int32()),
        ("logprob", pa.float64()),  # sum over the answer's tokens, in nats
        ("finished", pa.bool_()),  # ended by itself, not by the token limit
    ]
)


@dataclass(frozen=True)
class LoadReport:
    """How a model got into an engine, and how long that took."""

    how: Literal["start", "reload"]
    seconds: float
    parity: float | None = None
    """Mean difference from the trainer's log-probability of a token, in nats; None for the base."""


class Engine:
    """A vLLM engine over one model, with merged weights.

    LoRA sits on the vision encoder as well as on the decoder, which vLLM would silently ignore;
    so the adapter is merged on the engine's own node. vLLM starts with the base, whose folder stays,
    and takes merged weights by reloading, from a folder that is gone as soon as they are read.
    """

    def __init__(self, config: Config, class_names: list[str]):
        self.config = config
        self.class_names = class_names
        self.base = model_folder(config.model.path)
        self.llm: Any = None
        self.prompts: PathwayPrompts | None = None

    def load(self, adapter: str | None) -> LoadReport:
        """Serve base plus adapter; the base alone for None. Reloads in place once started."""
        started = time.perf_counter()
        how: Literal["start", "reload"] = "reload" if self.llm else "start"
        if not self.llm:
            self._start()
        if adapter:
            with tempfile.TemporaryDirectory(prefix="rdmldg-merged-") as folder:
                self._reload(self._merge(adapter, Path(folder)))
        elif how == "reload":
            self._reload(self.base)
        return LoadReport(how, time.perf_counter() - started)

    def generate(self, batch: pa.Table, request: Request) -> pa.Table:
        """Write one answer for each row of ``id`` and ``image``; returns ``ANSWER_SCHEMA``."""
        from rdmldg_ray.images import decode_image

        assert self.prompts is not None
        prompt = self.prompts.direct_text if request.pathway == "direct" else self.prompts.reasoning_text
        ids = batch["id"].to_pylist()
        inputs = [
            {
                "prompt": prompt,
                "multi_modal_data": {"image": decode_image(sample_id, data)},
            }
            for sample_id, data in zip(ids, batch["image"].to_pylist(), strict=True)
        ]
        sampling = [self._sampling(request, sample_id) for sample_id in ids]
        outputs = [result.outputs[0] for result in self.llm.generate(inputs, sampling, use_tqdm=False)]
        return pa.table(
            {
                "id": ids,
                "attempt": [request.attempt] * len(ids),
                "text": [output.text for output in outputs],
                "num_tokens": [len(output.token_ids) for output in outputs],
                "logprob": [output.cumulative_logprob for output in outputs],
                "finished": [output.finish_reason == "stop" for output in outputs],
            },
            schema=ANSWER_SCHEMA,
        )

    def score_chains(self, batch: pa.Table) -> list[list[float]]:
        """Log-probability, in nats, of each token of given chains: rows of ``id``, ``image``, ``chain``."""
        from vllm import SamplingParams

        from rdmldg_ray.images import decode_image

        assert self.prompts is not None
        targets = [self.prompts.target_ids(chain) for chain in batch["chain"].to_pylist()]
        inputs = [
            {
                "prompt_token_ids": self.prompts.reasoning_ids + target,
                "multi_modal_data": {"image": decode_image(row["id"], row["image"])},
            }
            for row, target in zip(batch.select(["id", "image"]).to_pylist(), targets, strict=True)
        ]
        sampling = SamplingParams(max_tokens=1, prompt_logprobs=0)
        scored = self.llm.generate(inputs, sampling, use_tqdm=False)
        chains = []
        for output, target in zip(scored, targets, strict=True):
            positions = output.prompt_logprobs[-len(target) :]
            chains.append([found[token].logprob for found, token in zip(positions, target, strict=True)])
        return chains

    def stop(self) -> None:
        """End vLLM's own processes, which would otherwise notice the actor's end only later."""
        if self.llm:
            self.llm.llm_engine.engine_core.shutdown()

    def _merge(self, adapter: str, folder: Path) -> Path:
        from rdmldg_ray.models.loading import save_merged

        local = download_folder(adapter, folder / "adapter")
        save_merged(self.base, local, self.config.model, folder / "merged")
        return folder / "merged"

    def _start(self) -> None:
        from vllm import LLM

        from rdmldg_ray.chains.pathways import PathwayPrompts
        from rdmldg_ray.models.loading import load_processor

        engines = self.config.engines
        on_gpu = engines.gpus_per_engine > 0
        # On CPU, vLLM 0.32 ends the engine when a prompt is processed in parts and its request has a
        # seed of its own ("CPU Generator does not use offset"); so prompts are not cut there.
        machine: dict[str, Any] = (
            {"gpu_memory_utilization": engines.gpu_memory_utilization}
            if on_gpu
            else {"enforce_eager": True, "enable_chunked_prefill": False}
        )
        settings = self.config.model.image_settings
        self.prompts = PathwayPrompts(load_processor(self.base), self.class_names, settings)
        self.llm = LLM(
            str(self.base),
            dtype=engines.dtype,
            max_model_len=self.config.model.max_length,
            tensor_parallel_size=max(1, engines.gpus_per_engine),
            limit_mm_per_prompt={"image": 1},
            mm_processor_kwargs=settings or None,
            seed=self.config.seed,
            disable_log_stats=True,
            **machine,
        )

    def _reload(self, model: Path) -> None:
        # The reload empties the worker's cache of encoded images but not the scheduler's, and an
        # image seen earlier would then end the engine; so all caches go first.
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.reset_mm_cache()
        self.llm.llm_engine.reset_encoder_cache()
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(model)})

    def _sampling(self, request: Request, sample_id: str) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        constraint = None
        if request.pathway == "direct":
            constraint = StructuredOutputsParams(choice=[display_name(name) for name in self.class_names])
        return SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_new_tokens,
            logprobs=0,
            seed=zlib.crc32(f"{request.seed}/{sample_id}/{request.attempt}".encode()),
            structured_outputs=constraint,
        )
