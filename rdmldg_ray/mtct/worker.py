"""The training loop of one worker: DeepSpeed, from the first step to the last adapter.

Imports what is heavy at the top: only Ray Train's worker processes import this module.
"""

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.train
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from peft import PeftModel
from peft.helpers import rescale_adapter_scale
from PIL import Image
from pyarrow.fs import LocalFileSystem
from transformers import get_scheduler

from rdmldg_ray.chains.pathways import PathwayPrompts
from rdmldg_ray.datasets.images import decode_image
from rdmldg_ray.datasets.schema import question_columns
from rdmldg_ray.models.card import write_card
from rdmldg_ray.models.families import family_of
from rdmldg_ray.models.folder import model_folder
from rdmldg_ray.models.loading import (
    leave_out_tied,
    load_base,
    load_processor,
    load_trained,
    make_trainable,
    plain_model,
    save_trained,
)
from rdmldg_ray.models.parity import PARITY_FILE, known_answers
from rdmldg_ray.mtct.checks import check_finite, memory_explained
from rdmldg_ray.mtct.collate import MicroBatch, MtctCollator, StepBatch
from rdmldg_ray.mtct.flex import block_mask, use_flex_attention
from rdmldg_ray.mtct.job import ADAPTER_FOLDER, METRICS_FILE, TrainJob
from rdmldg_ray.mtct.loss import DIRECT, REASONING, PathwayLosses, reduce_token_losses
from rdmldg_ray.mtct.metrics import Meter, describe, json_line
from rdmldg_ray.mtct.output_layer import TargetLoss
from rdmldg_ray.mtct.parameter_groups import parameter_groups
from rdmldg_ray.mtct.positions import decoder_inputs
from rdmldg_ray.mtct.safe_loading import weights_only
from rdmldg_ray.mtct.shared_prefix import Branch, additive_mask, lay_out
from rdmldg_ray.mtct.tracking import StageTracker, start_trackers
from rdmldg_ray.runtime.progress import ProgressFile
from rdmldg_ray.storage import (
    download_folder,
    exists,
    join,
    read_bytes,
    read_images,
    upload_folder,
    write_bytes,
)

_TAG = "deepspeed"


class TrainWorker:
    """One rank: its model, its share of every batch, its shard of every checkpoint."""

    def __init__(self, job: TrainJob):
        self.job = job
        self.rank = ray.train.get_context().get_world_rank()
        self.world_size = ray.train.get_context().get_world_size()
        assert self.world_size == job.plan.num_workers
        self._flex = job.config.model.attention == "flex"
        self.base = model_folder(job.config.model.path)
        self.family = family_of(self.base)
        torch.manual_seed(job.seed)
        self.model = self._load_model(self.base)
        leave_out_tied(self.model)
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.target_loss = TargetLoss(plain_model(self.model))
        self.engine = self._initialize_deepspeed()
        self.prompts = PathwayPrompts(
            load_processor(self.base), job.class_names, job.config.model.mm_processor_kwargs
        )
        self.metrics_log = join(job.location, METRICS_FILE)
        self.metrics: list[str] = []
        self.progress = ProgressFile(job.location) if self.rank == 0 else None
        self.trackers: list[StageTracker] = []
        self.leaving: set[str] = set()

    def run(self) -> None:
        """Train from the last checkpoint, if there is one, to the plan's end."""
        known = self._known_answers()  # before a checkpoint is loaded
        step = self._resume()
        total = self.job.plan.total_steps
        # Torch's counter of operations does not get through FlexAttention:
        # https://github.com/pytorch/pytorch/issues/134385
        self.meter = Meter(step, total, self.model, self.engine.device, countable=not self._flex)
        if self.rank == 0:
            self.trackers = start_trackers(self.job.config, self.job.location, step)
        for batch in self._batches(first_step=step):
            assert (batch.step, batch.rank) == (step, self.rank), "the stream left the plan's order"
            self.meter.data_arrived()
            metrics = self._step(batch)
            step += 1
            self._log(step, metrics)
            due = step % self.job.training.checkpoint_every == 0 or step == total
            if self._new_notice() or due:
                self._checkpoint(step, metrics)
            self.meter.data_wanted()
        assert step == total, f"the stream ended at step {step} of {total}"
        self._score(known, "logprobs")
        self._score(known, "blank_logprobs", blank=True)
        self._write_outputs(pa.Table.from_pylist(known))
        for tracker in self.trackers:
            tracker.close()

    def _new_notice(self) -> bool:
        """Whether a node of this stage's is about to be taken away, and was not the last time.

        The same on every rank, which all ask after every step.
        """
        info = ray.train.get_preemption_info()
        leaving = set(info.preempted_node_ids) if info else set()
        new = bool(leaving - self.leaving)
        self.leaving = leaving
        return new

    def _log(self, step: int, metrics: dict[str, float | None]) -> None:
        self.metrics.append(json_line(metrics))
        if self.progress:
            total = self.job.plan.total_steps
            line = describe(metrics)
            print(f"step {step}/{total}: {line}", flush=True)
            self.progress.write(step, total, line, last=step == total)
        for tracker in self.trackers:
            tracker.log(step, {name: value for name, value in metrics.items() if value is not None})

    def _load_model(self, base: Path) -> Any:
        config = self.job.config
        model = load_base(base, config.model)
        if self._flex:
            use_flex_attention(model)
        if config.workers.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.job.adapter is None:
            return make_trainable(model, self.family, config.lora)
        with tempfile.TemporaryDirectory() as folder:
            local = download_folder(self.job.adapter, Path(folder))
            return load_trained(model, self.family, config.lora, local)

    def _initialize_deepspeed(self) -> Any:
        training = self.job.training
        # As configured, not as seen: Ray does not hide a node's GPUs from workers that asked for none.
        on_gpu = self.job.config.workers.gpus_per_worker > 0
        # Its operation for inference on CPUs is never called here, and would be compiled under a lock that a
        # killed process leaves behind, on which all others then wait for ever:
        # https://github.com/deepspeedai/DeepSpeed/blob/v0.19.8/deepspeed/comm/torch.py#L50-L56
        # https://github.com/pytorch/pytorch/blob/v2.13.0/torch/utils/file_baton.py#L44-L50
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo")
        settings = {
            "train_micro_batch_size_per_gpu": training.micro_batch_size,
            "gradient_accumulation_steps": self.job.plan.accumulation,
            "gradient_clipping": training.max_grad_norm,
            "bf16": {"enabled": self.job.config.model.dtype == "bfloat16"},
            "torch_autocast": {"enabled": self._mixed_precision(), "dtype": "bfloat16"},
            # The config has no stage 0 in bfloat16: DeepSpeed takes its optimizer for FP16 there, which makes
            # room for its state by a step of Adam.
            # https://github.com/deepspeedai/DeepSpeed/blob/v0.19.8/deepspeed/runtime/engine.py#L2321
            # https://github.com/deepspeedai/DeepSpeed/blob/v0.19.8/deepspeed/runtime/fp16/unfused_optimizer.py#L412-L425
            "zero_optimization": {"stage": self.job.config.workers.zero_stage},
            "optimizer": {
                "type": "AdamW",
                "params": {
                    "lr": training.learning_rate,
                    "weight_decay": training.weight_decay,
                    # DeepSpeed's own Adam is a CUDA or AVX kernel that it compiles at first use, for which
                    # an image needs nvcc; LoRA has too few parameters to gain by it.
                    "torch_adam": True,
                },
            },
        }
        total = self.job.plan.total_steps

        def schedule(optimizer: Any) -> Any:
            warmup = round(training.warmup_ratio * total)
            # transformers' plain "constant" would ignore the warm-up:
            # https://github.com/huggingface/transformers/blob/v5.19.0/src/transformers/optimization.py#L1014-L1015
            name = "constant_with_warmup" if training.lr_scheduler == "constant" else training.lr_scheduler
            return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)

        engine, *_ = deepspeed.initialize(
            model=self.model,
            model_parameters=parameter_groups(self.model, self.family, training),
            config=settings,
            lr_scheduler=schedule,
        )
        engine.train()
        return engine

    def _mixed_precision(self) -> bool:
        """The setting, or what suits the processors of all workers, which have to agree."""
        setting = self.job.config.model.mixed_precision
        if setting != "auto":
            return setting
        on_gpu = self.job.config.workers.gpus_per_worker > 0
        native = torch.cuda.is_bf16_supported() if on_gpu else torch.cpu.get_capabilities().get("avx512_bf16")
        everywhere = torch.tensor(
            bool(native), dtype=torch.int32, device=get_accelerator().current_device_name()
        )
        dist.all_reduce(everywhere, dist.ReduceOp.MIN)
        return bool(everywhere)

    def _batches(self, first_step: int) -> Iterator[StepBatch]:
        config = self.job.config
        collate = MtctCollator(
            prompts=self.prompts,
            weights=config.mtct.weights,
            plan=self.job.plan,
            augment=config.data.augment,
            seed=self.job.seed,
            max_length=config.model.max_length,
            first_step=first_step,
        )
        shard = ray.train.get_dataset_shard("train")
        for batch in shard.iter_torch_batches(batch_size=1, prefetch_batches=2, collate_fn=collate):
            if batch.step >= first_step:
                yield batch

    def _step(self, batch: StepBatch) -> dict[str, float | None]:
        size = self.job.plan.step_size(batch.step)
        weights = self.job.config.mtct.weights
        learning_rate = max(self.engine.get_lr())
        seed_step(self.job.seed, batch.step, self.rank)
        sums = torch.zeros(4, dtype=torch.float64)
        for micro in batch.micro_batches:
            segments = micro.layout.segments
            with memory_explained(batch.step, micro.ids, segments.shape[1]):
                with self.meter.forward(segments.numel()):
                    losses = self._forward(micro)
                check_finite(losses, batch.step, micro.ids)
                # DeepSpeed divides by the number of forward passes and averages over workers; undoing
                # both leaves the mean over the samples of the step, however they are cut.
                scale = self.world_size * self.job.plan.accumulation / size
                self.engine.backward(losses.weighted_sum(weights.direct, weights.reasoning) * scale)
                self.engine.step()
            tokens = segments.ge(0).sum().item()
            sums += torch.tensor(
                [losses.direct.sum().item(), losses.reasoning.sum().item(), tokens, segments.numel()]
            )
        sums_on_device = sums.to(self.engine.device)
        dist.all_reduce(sums_on_device)
        direct, reasoning, tokens, laid_out = sums_on_device.tolist()
        return {
            "step": batch.step,
            "epoch": batch.epoch,
            "loss_direct": direct / size,
            "loss_reasoning": reasoning / size,
            "learning_rate": learning_rate,
            "tokens": tokens,
            **self.meter.step_done(batch.step + 1, size, tokens, laid_out),
        }

    def _forward(self, micro: MicroBatch) -> PathwayLosses:
        token_losses = self._token_losses(self.engine, micro)
        pathway = micro.layout.target_pathway.to(self.engine.device)
        return reduce_token_losses(token_losses, pathway, self.job.config.mtct.label_reduction)

    def _token_losses(self, model: torch.nn.Module, micro: MicroBatch) -> torch.Tensor:
        """(B, K) -log p of each target, in nats."""
        device, layout = self.engine.device, micro.layout
        segments = layout.segments.to(device)
        dtype = getattr(torch, self.job.config.model.dtype)
        base = plain_model(self.model)
        inputs = micro.model_inputs | decoder_inputs(self.family, base, layout, micro.model_inputs)
        with self.target_loss.of(layout.targets.to(device)):
            return model(
                input_ids=layout.input_ids.to(device),
                attention_mask=block_mask(segments) if self._flex else additive_mask(segments, dtype),
                logits_to_keep=layout.keep.to(device),
                use_cache=False,
                **{name: value.to(device) for name, value in inputs.items()},
            ).logits

    def _checkpoint(self, step: int, metrics: dict[str, float | None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            # The base is not ours to copy: what is trained and the optimizer's state only.
            self.engine.save_checkpoint(
                folder,
                tag=_TAG,
                client_state={"step": step},
                exclude_frozen_parameters=True,
            )
            if self.rank == 0:
                write_bytes(self.metrics_log, "".join(self.metrics).encode())
            for tracker in self.trackers:
                tracker.save()
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _resume(self) -> int:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0
        with _on_this_node(checkpoint) as folder, weights_only():
            _, state = self.engine.load_checkpoint(folder, tag=_TAG, load_module_strict=False)
        step = int(state["step"])
        if exists(self.metrics_log):
            self.metrics = read_bytes(self.metrics_log).decode().splitlines(keepends=True)[:step]
        return step

    def _known_answers(self) -> list[dict[str, Any]]:
        """Answers to compare engines with, and what the model that training begins with makes of them."""
        samples = self.job.parity_set
        columns = samples.select(["id", "label", "chain", *question_columns(samples)])
        rows = columns.append_column("image", pa.array(read_images(samples), pa.binary())).to_pylist()
        known = known_answers(rows, self.job.class_names)
        self._score(known, "start_logprobs")
        if self.job.adapter is None:
            for row in known:
                row["base_logprobs"] = row["start_logprobs"]
        elif isinstance(self.model, PeftModel):  # else the base's weights are gone
            with rescale_adapter_scale(self.model, 0):
                self._score(known, "base_logprobs")
        return known

    def _score(self, known: list[dict[str, Any]], column: str, blank: bool = False) -> None:
        """Add each answer's log-probabilities, in nats, by the model as it is; all ranks take part.

        Args:
            blank: for a gray image of the same size.
        """
        self.engine.eval()
        with torch.no_grad():
            for _, answers in itertools.groupby(known, lambda row: row["id"]):
                of_image = list(answers)
                for row, logprobs in zip(of_image, self._answer_logprobs(of_image, blank), strict=True):
                    row[column] = logprobs
        self.engine.train()

    def _answer_logprobs(self, answers: list[dict[str, Any]], blank: bool) -> Iterator[list[float]]:
        """Of several answers to one image, in one layout."""
        sample = answers[0]
        prompts = self.prompts.asking(sample)
        image = decode_image(sample["id"], sample["image"])
        encoded = prompts.encode([Image.new("RGB", image.size, "gray") if blank else image])
        branches = [
            Branch(DIRECT, prompts.direct_tail, prompts.target_ids(row["target"]))
            if row["pathway"] == "direct"
            else Branch(REASONING, prompts.reasoning_tail, prompts.target_ids(row["target"]))
            for row in answers
        ]
        layout = lay_out(encoded.prefixes, [branches], prompts.processor.tokenizer.pad_token_id)
        micro = MicroBatch([sample["id"]], layout, encoded.model_inputs)
        # Not through DeepSpeed, which would bring autocast with it: the engines compute in full.
        tokens = iter((-self._token_losses(self.engine.module, micro)).flatten().tolist())
        return (list(itertools.islice(tokens, len(branch.target))) for branch in branches)

    def _write_outputs(self, known: pa.Table) -> None:
        stage3 = self.job.config.workers.zero_stage == 3
        # Every rank holds a part of ZeRO 3's parameters, so every rank takes part; rank 0 writes.
        with deepspeed.zero.GatheredParameters(self.trainable, enabled=stage3):
            if self.rank == 0:
                with tempfile.TemporaryDirectory() as folder:
                    save_trained(self.model, Path(folder))
                    config = self.job.config
                    write_card(Path(folder), self.base, config.name, config.data.dataset, self.job.model)
                    pq.write_table(known, Path(folder) / PARITY_FILE)
                    upload_folder(Path(folder), join(self.job.location, ADAPTER_FOLDER))
        dist.barrier()


@contextmanager
def _on_this_node(checkpoint: ray.train.Checkpoint) -> Iterator[str]:
    """A checkpoint as a local folder, downloaded once for each node; all ranks take part.

    Not by ``Checkpoint.as_directory``: a worker that is later than another on its node downloads over the
    files that the other reads. https://github.com/ray-project/ray/issues/48726
    """
    if isinstance(checkpoint.filesystem, LocalFileSystem):
        yield checkpoint.path
        return
    context = ray.train.get_context()
    downloads = context.get_local_rank() == 0
    found = tempfile.mkdtemp(prefix="rdmldg-checkpoint-") if downloads else None
    if found:
        checkpoint.to_directory(found)
    everywhere: list[Any] = [None] * context.get_world_size()
    dist.all_gather_object(everywhere, (context.get_node_rank(), found))  # waits for the downloads
    [folder] = [path for node, path in everywhere if node == context.get_node_rank() and path]
    yield folder
    dist.barrier()
    if downloads:
        shutil.rmtree(folder)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Set torch's generators for a step, of which dropout draws.

    As a function of step and rank they need no place in a checkpoint: a resumed stage drops what
    it would have dropped.
    """
    torch.manual_seed(int(np.random.default_rng([seed, step, rank]).integers(2**63)))
