"""One vLLM engine, to be run as a Ray actor."""

import logging
import socket
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from safetensors import SafetensorError

from rdmldg_ray.chains.format import display_name
from rdmldg_ray.config.schema import Config, Pathway
from rdmldg_ray.datasets.images import ImageError, decode_image
from rdmldg_ray.engines.options import OptionSearch
from rdmldg_ray.engines.shared_llm import EngineLostError, SharedLlm
from rdmldg_ray.models.folder import model_folder
from rdmldg_ray.models.parity import PARITY_FILE, as_known, check_parity
from rdmldg_ray.runtime.versions import explain_engine_misfit
from rdmldg_ray.storage import download_folder, join, read_table

if TYPE_CHECKING:
    from PIL.Image import Image

    from rdmldg_ray.chains.pathways import PathwayPrompts


class EngineError(ValueError):
    """An engine cannot do what was asked of it; the message says what that was."""


@dataclass(frozen=True)
class GenerationRequest:
    """What an engine is asked to write for each image."""

    pathway: Pathway
    candidate: int
    """Number of the candidate, from 0; with the sample's id and the seed it fixes the randomness."""
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    score_label: bool = False
    """Whether to tell the label's log-probability by the direct pathway as well."""


ANSWER_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("candidate", pa.int32()),
        ("text", pa.string()),
        ("num_tokens", pa.int32()),
        ("logprob", pa.float64()),  # sum over the answer's tokens, in nats
        ("finished", pa.bool_()),  # ended by itself, not by the token limit
        ("label_logprob", pa.float64()),  # of the label by the direct pathway, in nats; null unless asked for
        ("error", pa.string()),  # why there is no answer: the image does not decode, or is too large
    ]
)

_log = logging.getLogger(__name__)

_NO_ANSWER = {"text": "", "num_tokens": 0, "logprob": 0.0, "finished": False}


@dataclass(frozen=True)
class LoadReport:
    """How a model got into an engine, and how long that took."""

    how: Literal["start", "reload"]
    seconds: float
    parity: float | None = None
    """Mean difference from the trainer's log-probabilities, in nats (``models.parity``); None: the base."""


class Engine:
    """A vLLM engine over one model, with merged weights.

    LoRA sits on the vision encoder as well as on the decoder, which vLLM would silently ignore;
    so the adapter is merged on the engine's own node. vLLM starts with the base, and takes merged weights by
    reloading, each as soon as it is merged.

    Processes that vLLM starts end with the actor, however that ends: Ray kills the actor's process group,
    which vLLM's processes do not leave, unless the cluster sets RAY_process_group_cleanup_enabled=0.
    https://github.com/ray-project/ray/pull/64407
    """

    def __init__(self, config: Config, class_names: list[str]):
        self.config = config
        self.class_names = class_names
        self.base = model_folder(config.model.path)
        self.llm: SharedLlm | None = None
        # An engine that starts slowly may be asked for the next model meanwhile.
        self._load_lock = threading.Lock()
        self.prompts: PathwayPrompts | None = None

    def load(self, adapter: str | None) -> LoadReport:
        """Serve base plus adapter; the base alone for None. Reloads in place once started.

        Raises:
            ParityError: when the engine does not compute what was trained.
            EngineLostError: when vLLM's own process has ended, or the node's disk fails, as when it is full.
        """
        with self._load_lock, _wrap_disk_errors():
            started = time.perf_counter()
            how: Literal["start", "reload"] = "reload" if self.llm else "start"
            if not self.llm:
                self._start()
            if adapter or how == "reload":
                with tempfile.TemporaryDirectory(prefix="rdmldg-adapter-") as folder:
                    self._reload(download_folder(adapter, Path(folder)) if adapter else None)
            seconds = time.perf_counter() - started
            return LoadReport(how, seconds, self._check_parity(adapter) if adapter else None)

    def generate(self, batch: pa.Table, request: GenerationRequest) -> pa.Table:
        """Write one answer for each row of ``id`` and ``image``; returns ``ANSWER_SCHEMA``.

        A row whose image does not decode, or takes more tokens than there is room for, gets its error
        for an answer.

        Args:
            batch: has ``label`` as well when the request asks to score it, and ``question`` and
                ``options`` in a data set of questions.

        Raises:
            EngineLostError: when vLLM's own process has ended.
        """
        assert self.prompts is not None
        images, errors = _decode(batch)
        samples = {row["id"]: row for row in batch.drop_columns(["image"]).to_pylist()}
        asked = {sample_id: self.prompts.asking(samples[sample_id]) for sample_id in images}
        answers = (
            self._choose(asked, images)
            if request.pathway == "direct"
            else self._write(asked, images, request)
        )
        for sample_id, answer in answers.items():
            if isinstance(answer, str):
                errors[sample_id] = f"{sample_id}: {answer}"
                del images[sample_id]
        labels = self._label_logprobs(samples, asked, images) if request.score_label else {}
        rows: list[dict[str, Any]] = [{"id": i, "error": error, **_NO_ANSWER} for i, error in errors.items()]
        for sample_id in images:
            answer = answers[sample_id]
            assert isinstance(answer, dict)
            rows.append({"id": sample_id, **answer, "label_logprob": labels.get(sample_id)})
        return pa.Table.from_pylist(
            [row | {"candidate": request.candidate} for row in rows], schema=ANSWER_SCHEMA
        )

    def _write(
        self, asked: dict[str, "PathwayPrompts"], images: dict[str, "Image"], request: GenerationRequest
    ) -> dict[str, dict[str, Any] | str]:
        """A chain for each image as ``ANSWER_SCHEMA`` has it, or why there is none."""
        from vllm import SamplingParams

        assert self.llm
        outputs = self.llm.run(
            [
                {"prompt": asked[sample_id].reasoning_text, "multi_modal_data": {"image": image}}
                for sample_id, image in images.items()
            ],
            [
                SamplingParams(
                    temperature=request.temperature,
                    top_p=request.top_p,
                    max_tokens=request.max_new_tokens,
                    logprobs=0,
                    seed=zlib.crc32(f"{request.seed}/{sample_id}/{request.candidate}".encode()),
                )
                for sample_id in images
            ],
        )
        return {
            sample_id: output if isinstance(output, str) else _written(output)
            for sample_id, output in zip(images, outputs, strict=True)
        }

    def _choose(
        self, asked: dict[str, "PathwayPrompts"], images: dict[str, "Image"]
    ) -> dict[str, dict[str, Any] | str]:
        """The most probable option for each image as ``ANSWER_SCHEMA`` has it, or why there is none.

        Options are scored by the tokens that are trained. A grammar of their letters would let a tokenizer
        with prefix spaces, such as LLaMA's, choose other tokens.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import MAX_LOGPROB_TOKEN_IDS

        assert self.llm
        searches = {sample_id: OptionSearch(asked[sample_id].option_ids) for sample_id in images}
        answers: dict[str, dict[str, Any] | str] = {}
        while searches:
            prompts, sampling, owners = [], [], []
            for sample_id, search in searches.items():
                prefix, tokens = search.wanted()
                prompt = {
                    "prompt_token_ids": asked[sample_id].direct_ids + prefix,
                    "multi_modal_data": {"image": images[sample_id]},
                }
                for start in range(0, len(tokens), MAX_LOGPROB_TOKEN_IDS):
                    some = tokens[start : start + MAX_LOGPROB_TOKEN_IDS]
                    prompts.append(prompt)
                    sampling.append(SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=some))
                    owners.append(sample_id)
            looks: dict[str, dict[int, float]] = {}
            for sample_id, output in zip(owners, self.llm.run(prompts, sampling), strict=True):
                if isinstance(output, str):
                    answers[sample_id] = output
                    continue
                [after] = output.outputs[0].logprobs
                looks.setdefault(sample_id, {}).update({token: one.logprob for token, one in after.items()})
            for sample_id, logprobs in looks.items():
                searches[sample_id].add(logprobs)
                if found := searches[sample_id].found:
                    answers[sample_id] = _chosen(asked[sample_id], *found)
            searches = {
                sample_id: search for sample_id, search in searches.items() if sample_id not in answers
            }
        return {sample_id: answers[sample_id] for sample_id in images}

    def score_answers(self, batch: pa.Table) -> list[list[float]]:
        """Log-probability, in nats, of each token of given answers.

        Args:
            batch: rows of ``id``, ``image``, ``pathway``, ``target``, and ``question`` and ``options`` in a
                data set of questions.
        """
        assert self.prompts is not None
        rows = batch.to_pylist()
        images = [decode_image(row["id"], row["image"]) for row in rows]
        asked = [self.prompts.asking(row) for row in rows]
        prompts = [
            prompts.direct_ids if row["pathway"] == "direct" else prompts.reasoning_ids
            for row, prompts in zip(rows, asked, strict=True)
        ]
        return self._score(prompts, images, [row["target"] for row in rows])

    def _label_logprobs(
        self,
        samples: dict[str, dict[str, Any]],
        asked: dict[str, "PathwayPrompts"],
        images: dict[str, "Image"],
    ) -> dict[str, float]:
        prompts = [asked[sample_id].direct_ids for sample_id in images]
        targets = [display_name(samples[sample_id]["label"]) for sample_id in images]
        scored = self._score(prompts, list(images.values()), targets)
        return {sample_id: sum(tokens) for sample_id, tokens in zip(images, scored, strict=True)}

    def _score(
        self, prompts: list[list[int]], images: list["Image"], targets: list[str]
    ) -> list[list[float]]:
        """Log-probability, in nats, of each token of a target after prompt and image."""
        from vllm import SamplingParams

        assert self.prompts is not None and self.llm
        target_ids = [self.prompts.target_ids(target) for target in targets]
        outputs = self.llm.run(
            [
                {"prompt_token_ids": prompt + ids, "multi_modal_data": {"image": image}}
                for prompt, image, ids in zip(prompts, images, target_ids, strict=True)
            ],
            [SamplingParams(max_tokens=1, prompt_logprobs=0) for _ in images],
        )
        for output in outputs:
            if isinstance(output, str):
                raise ValueError(f"a prompt with its target cannot be scored: {output}")
        return [
            [
                found[token].logprob
                for found, token in zip(output.prompt_logprobs[-len(ids) :], ids, strict=True)
            ]
            for output, ids in zip(outputs, target_ids, strict=True)
        ]

    def stop(self) -> None:
        """End vLLM's own processes in an orderly way."""
        if self.llm:
            self.llm.stop()

    def _check_parity(self, adapter: str) -> float:
        known = as_known(read_table(join(adapter, PARITY_FILE)))
        return check_parity(known, self.score_answers(known), self.config.engines)

    def _start(self) -> None:
        from vllm import LLM

        from rdmldg_ray.chains.pathways import PathwayPrompts
        from rdmldg_ray.models.loading import load_processor

        engines = self.config.engines
        on_gpu = engines.gpus_per_engine > 0
        if misfit := explain_engine_misfit(engines.gpus_per_engine):
            raise EngineError(f"{socket.gethostname()}: {misfit}")
        # On CPU, vLLM 0.32 ends the engine when a prompt is processed in parts and its request has a
        # seed of its own ("CPU Generator does not use offset"); so prompts are not cut there.
        # https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/worker/gpu_model_runner.py#L3502
        machine: dict[str, Any] = (
            {"gpu_memory_utilization": engines.gpu_memory_utilization}
            if on_gpu
            else {"enforce_eager": True, "enable_chunked_prefill": False}
        )
        settings = self.config.model.mm_processor_kwargs
        self.prompts = PathwayPrompts(load_processor(self.base), self.class_names, settings)
        try:
            llm = LLM(
                str(self.base),
                dtype=engines.dtype,
                load_format="safetensors",
                trust_remote_code=False,
                max_model_len=self.config.model.max_length,
                tensor_parallel_size=max(1, engines.gpus_per_engine),
                limit_mm_per_prompt={"image": 1},
                mm_processor_kwargs=settings or None,
                seed=self.config.seed,
                disable_log_stats=True,
                worker_extension_cls="rdmldg_ray.engines.reloading.MergingWorker",
                **machine,
            )
        # No room for weights or KV cache, a model class that vLLM lacks, and more: all kinds of error.
        except Exception as error:
            if _of_the_system(error):
                raise
            text = " ".join(str(error).split())[-600:]
            raise EngineError(f"vLLM does not start with {self.base}: {text}") from error
        self.llm = SharedLlm(llm)

    def _reload(self, trained: Path | None) -> None:
        from rdmldg_ray.models.merging import UnsupportedMergeError, plan_merge

        assert self.llm
        with self.llm.emptied() as llm:
            try:
                merge = asdict(plan_merge(self.base, trained))
            except UnsupportedMergeError as error:
                assert trained
                _log.warning("merged weights are written to disk first: %s", error)
                self._reload_written(llm, trained)
            else:
                dtype = self.config.model.dtype
                llm.collective_rpc("reload_merged", kwargs={"merge": merge, "dtype": dtype})

    def _reload_written(self, llm: Any, trained: Path) -> None:
        from rdmldg_ray.models.loading import save_merged

        with tempfile.TemporaryDirectory(prefix="rdmldg-merged-") as folder:
            save_merged(self.base, trained, self.config.model, Path(folder) / "merged")
            path = str(Path(folder) / "merged")
            llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        # vLLM notes the weights' folder as the model's, and in one process would look there for the
        # processor, long after the folder is gone.
        # https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/model_executor/model_loader/reload/inplace.py#L84
        llm.llm_engine.model_config.model = str(self.base)


def _written(output: Any) -> dict[str, Any]:
    [answer] = output.outputs
    return {
        "text": answer.text,
        "num_tokens": len(answer.token_ids),
        "logprob": answer.cumulative_logprob,
        "finished": answer.finish_reason == "stop",
    }


def _chosen(prompts: "PathwayPrompts", number: int, logprob: float) -> dict[str, Any]:
    return {
        "text": prompts.options[number],
        "num_tokens": len(prompts.option_ids[number]),
        "logprob": logprob,
        "finished": True,
    }


@contextmanager
def _wrap_disk_errors() -> Iterator[None]:
    """Tell what fails on this node, where another may do, from what is wrong with the request."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _of_the_system(error):
            raise
        raise EngineLostError(f"{type(error).__name__} on {socket.gethostname()}: {error}") from error


def _of_the_system(error: Exception) -> bool:
    if isinstance(error, SafetensorError):  # which tells in words alone, whether it reads or writes
        return "I/O error" in str(error)
    # Without a number it is transformers that says so what a model's folder lacks.
    return isinstance(error, OSError) and error.errno is not None


def _decode(batch: pa.Table) -> tuple[dict[str, "Image"], dict[str, str]]:
    """Images by id, and the errors of those that do not decode."""
    images, errors = {}, {}
    for sample_id, data in zip(batch["id"].to_pylist(), batch["image"].to_pylist(), strict=True):
        try:
            images[sample_id] = decode_image(sample_id, data)
        except ImageError as error:
            errors[sample_id] = str(error)
    return images, errors
