"""A run's config, typed and checked: its sections, and ``Config``, the whole.

The defaults are the paper's (arXiv 2602.23777) where it gives a number.
"""

from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from rdmldg_ray.config.names import check_name

_MOST = 2**31 - 1
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Pathway = Literal["direct", "reasoning"]
Dtype = Literal["float32", "bfloat16"]
Tracker = Literal["tensorboard", "mlflow", "wandb"]

RECORDED = "recorded"
"""The validation context of a config that a run or sweep has recorded, maybe in an earlier release."""


class Section(BaseModel):
    """Frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_sections_have_defaults(cls, given: Any) -> Any:
        """``lora:`` with nothing below it is a section that sets nothing."""
        if not isinstance(given, dict):
            return given
        sections = {
            name
            for name, field in cls.model_fields.items()
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        }
        return {key: value for key, value in given.items() if value is not None or key not in sections}

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        """What counts images, steps and tokens, or seeds a generator, has 32 bits."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, int) and abs(value) > _MOST:
                raise ValueError(f"{name} is {value}; give a number of at most {_MOST}")
        return self


def as_list(value: Any) -> Any:
    """On the command line a list may be written ``a,b`` and a list of one ``a``."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int | float) else value


class DataConfig(Section):
    """Which images and chains, and how they are split."""

    dataset: Annotated[str, AfterValidator(partial(check_name, "the data set"))] = Field(
        "iconbed", description="Name of a data set on storage."
    )
    held_out: Annotated[list[str], BeforeValidator(as_list)] = Field(
        ["all"],
        min_length=1,
        description="Held-out domains, a fold for each; 'a+b' holds several out together. Or 'all' (each "
        "domain in turn), 'pairs' (for leave-one-domain-out cross-validation), 'single-source' (trains on "
        "each domain alone).",
    )
    chains: Annotated[str, AfterValidator(partial(check_name, "the teacher"))] = Field(
        "rules", description="The teacher whose chains MTCT trains on."
    )
    long_chains: Literal["refuse", "drop"] = Field(
        "refuse",
        description="A teacher's chains that with their prompt are longer than model.max_length end a run "
        "before its first step, or their images take no part in MTCT.",
    )
    trial_seed: Annotated[int, Field(ge=0)] = Field(
        0, description="DomainBed's trial seed; fixes the splits."
    )
    holdout_fraction: Fraction = Field(0.2, description="Share of each domain in DomainBed's 'out' split.")
    classes: Literal["all", "base"] = Field(
        "all",
        description="Classes to train and validate on: all, or the first half in sorted order, to measure "
        "transfer to new classes. Prompts list, and the test uses, all classes.",
    )
    augment: Literal["none", "domainbed"] = Field(
        "none", description="Augmentation of training images: none, or DomainBed's."
    )


class ModelConfig(Section):
    """The base model, and how training computes with it."""

    path: str = Field(
        "tiny",
        description="Base model: 'tiny' is the one in this package, any other value a folder or a hub id.",
    )
    dtype: Dtype = Field("bfloat16", description="Type of the base model's weights in training.")
    mixed_precision: Literal[True, False, "auto"] = Field(
        False,
        description="Train float32 weights with matrix products in bfloat16 (torch's autocast); 'auto' does "
        "so only where every worker's processor has instructions for bfloat16, since it is slower elsewhere.",
    )
    attention: Literal["sdpa", "eager", "flex"] = Field(
        "sdpa",
        description="Attention in training. 'flex' is torch's FlexAttention in the decoder, which skips the "
        "blocks that the pathways mask from each other: the longer the prompts, the more it saves. It trains "
        "on GPUs only, and compiles its kernels at the start.",
    )
    max_length: Positive = Field(4096, description="Maximum length of prompt plus answer, in tokens.")
    mm_processor_kwargs: dict[str, Any] = Field(
        {},
        description="Settings of the model's image processor that differ from its own, for training and "
        "engines alike, such as crop_to_patches: false.",
    )

    @model_validator(mode="after")
    def _mixed_with_float32(self) -> Self:
        if self.mixed_precision is not False and self.dtype != "float32":
            raise ValueError(f"mixed_precision needs dtype float32, not {self.dtype}")
        # Rotary embeddings leave queries and keys in float32, whose values autocast has in bfloat16.
        if self.mixed_precision is not False and self.attention == "flex":
            raise ValueError("attention 'flex' wants one dtype; set mixed_precision to false, or use 'sdpa'")
        return self


class LoraConfig(Section):
    """Low-rank adapters; the paper puts them on the vision encoder and the decoder both."""

    enabled: bool = Field(
        True,
        description="False for full fine-tuning: the weights of the parts are trained without adapters, "
        "which needs a far smaller learning rate.",
    )
    rank: Positive = Field(8, description="Rank of the adapters.")
    alpha: Positive = Field(16, description="Scale of the adapters, as peft's lora_alpha: alpha over rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Dropout before the adapters.")
    parts: Annotated[list[Literal["vision", "connector", "decoder"]], BeforeValidator(as_list)] = Field(
        ["vision", "decoder"],
        min_length=1,
        description="Parts of the model with adapters, or trained in full; the paper's are vision encoder "
        "and decoder.",
    )


class PathwayWeights(Section):
    """Weights of the two terms of the MTCT loss."""

    direct: NonNegative = Field(1.0, description="Weight of the label's term; 0 trains on chains only.")
    reasoning: NonNegative = Field(1.0, description="Weight of the chain's term; 0 trains on labels only.")


class LearningRates(Section):
    """AdamW's largest learning rates of the parts of the model, where they differ from ``learning_rate``."""

    vision: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Largest learning rate of the vision encoder; by default learning_rate."
    )
    connector: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Largest learning rate of the connector; by default learning_rate."
    )
    decoder: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Largest learning rate of the decoder; by default learning_rate."
    )


class TrainingConfig(Section):
    """One stage of training: the optimizer and its batches."""

    epochs: Positive = Field(3, description="Passes over the training set.")
    batch_size: Positive = Field(128, description="Images in one optimizer step, over all workers.")
    micro_batch_size: Positive = Field(
        4,
        description="Images in one forward pass of one worker, which changes no result; halved by itself "
        "where memory runs out.",
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-4, description="AdamW's largest learning rate.")
    learning_rates: LearningRates = LearningRates()
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="How the learning rate falls after the warm-up."
    )
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.03, description="Share of the steps in which the learning rate rises from zero."
    )
    weight_decay: NonNegative = Field(0.0, description="AdamW's weight decay.")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Gradients are clipped to this norm."
    )
    checkpoint_every: Positive = Field(50, description="Optimizer steps between checkpoints.")

    def rate_of(self, part: str) -> float:
        """The largest learning rate of ``vision``, ``connector`` or ``decoder``."""
        own = getattr(self.learning_rates, part)
        return self.learning_rate if own is None else float(own)

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} is larger than batch_size {self.batch_size}"
            )
        return self


class MtctConfig(TrainingConfig):
    """Stage 1, Multi-Task Cross-Training; its loss serves stage 2 as well."""

    weights: PathwayWeights = PathwayWeights()
    # The paper writes -log p(y | x, q_cls): the log-probability of the whole label is the sum over
    # its tokens, so the sum is the formula and the mean an experiment.
    label_reduction: Literal["sum", "mean"] = Field(
        "sum",
        description="How the losses of a label's tokens are reduced: 'sum' is the paper's formula, the "
        "log-probability of the whole label.",
    )

    @model_validator(mode="after")
    def _some_pathway(self) -> Self:
        if self.weights.direct == 0 and self.weights.reasoning == 0:
            raise ValueError("weights.direct and weights.reasoning are both 0: nothing to train on")
        return self


class FilterConfig(Section):
    """Which of the model's own chains are accepted, beyond the paper's filter; none is no bound."""

    conclusion: Literal["label", "any"] = Field(
        "label",
        description="What an accepted chain concludes with: its label, which is the paper's filter, or "
        "'any' for an ablation without it.",
    )
    min_tokens: Positive | None = Field(None, description="Least length of an accepted chain, in tokens.")
    max_tokens: Positive | None = Field(None, description="Largest length of an accepted chain, in tokens.")
    max_repetition: Share | None = Field(
        None, description="Largest share of an accepted chain's word 4-grams that repeat earlier ones."
    )
    min_logprob: float | None = Field(
        None, le=0, description="Least mean log-probability of an accepted chain's tokens, in nats."
    )
    min_label_prob: Share | None = Field(
        None, description="Least probability of the label by the direct pathway."
    )
    min_agreement: Share | None = Field(
        None,
        description="Least share of an image's candidates with the same conclusion as the accepted chain; "
        "applied when all candidates are drawn.",
    )

    @model_validator(mode="after")
    def _some_length_is_left(self) -> Self:
        if self.min_tokens and self.max_tokens and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is larger than max_tokens {self.max_tokens}")
        return self


class SarrConfig(Section):
    """Stage 2, Self-Aligned Reasoning Regularization."""

    rounds: Annotated[int, Field(ge=0, le=1000)] = Field(3, description="Rounds of SARR; 0 for MTCT alone.")
    sampling: Literal["until_accepted", "fixed"] = Field(
        "until_accepted",
        description="Draw again only for images without an accepted chain, or max_attempts times for every "
        "image.",
    )
    max_attempts: Positive = Field(
        4, description="Candidates for each image: at most so many, or with 'fixed' exactly."
    )
    temperatures: Annotated[list[NonNegative], BeforeValidator(as_list)] = Field(
        [1.0], min_length=1, description="Temperature by attempt; the last is used for all later ones."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Nucleus sampling.")
    max_new_tokens: Positive = Field(1024, description="Maximum length of a candidate, in tokens.")
    filter: FilterConfig = FilterConfig()
    best_by: Literal["logprob", "num_tokens", "repetition"] = Field(
        "logprob",
        description="Which of an image's accepted chains is selected for training: the one with the highest "
        "mean log-probability, the fewest tokens or the least repetition.",
    )
    without_chain: Literal["drop", "teacher", "labels"] = Field(
        "drop",
        description="Images without an accepted chain are left out of the round (the paper), trained on the "
        "teacher's chain, or trained on their label alone.",
    )
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _attempts_differ(self) -> Self:
        if len(self.temperatures) > self.max_attempts:
            raise ValueError(
                f"temperatures lists {len(self.temperatures)} attempts, "
                f"max_attempts allows {self.max_attempts}"
            )
        if self.max_attempts > 1 and self.temperatures[0] == 0 and self.temperatures[-1] == 0:
            raise ValueError("temperature 0 writes the same chain at every attempt; set max_attempts to 1")
        return self


class WorkersConfig(Section):
    """The Ray Train workers and how DeepSpeed shards over them."""

    num_workers: Positive = Field(1, description="Ray Train workers.")
    cpus_per_worker: Annotated[float, Field(gt=0)] = Field(1.0, description="CPUs reserved for each worker.")
    gpus_per_worker: NonNegative = Field(0.0, description="GPUs reserved for each worker; 0 trains on CPU.")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        1,
        description="DeepSpeed's ZeRO stage: what is sharded over the workers. Stage 0 needs float32: in "
        "bfloat16, Adam's bias correction would be a step too far.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time."
    )
    max_failures: Annotated[int, Field(ge=-1)] = Field(
        3, description="Restarts from the last checkpoint before a stage fails; -1 for no limit."
    )
    scheduling_timeout_s: Positive = Field(
        1800,
        description="Seconds that a stage waits for room for its workers before it fails.",
    )


class EnginesConfig(Section):
    """The pool of vLLM engines that writes chains and answers in evaluation."""

    num_engines: Positive = Field(1, description="vLLM engines in the pool.")
    min_engines: Positive | None = Field(
        None,
        description="Start work with fewer engines, down to this number, while the cluster has no room for "
        "all of them; by default the pool waits for all.",
    )
    cpus_per_engine: Annotated[float, Field(gt=0)] = Field(1.0, description="CPUs reserved for each engine.")
    gpus_per_engine: Annotated[int, Field(ge=0)] = Field(
        0, description="GPUs reserved for each engine, which is also its tensor-parallel size."
    )
    dtype: Dtype = Field("bfloat16", description="Type of the weights in the engines.")
    batch_size: Positive = Field(256, description="Images in one request to an engine.")
    gpu_memory_utilization: Fraction = Field(
        0.85, description="Share of a GPU's memory that an engine may use, as in vLLM."
    )
    cpu_kv_cache_gib: Positive = Field(1, description="Size of the KV cache of an engine on CPU, in GiB.")
    start_timeout_s: Positive = Field(
        900, description="Seconds that a stage waits for its engines to start before it fails."
    )
    batch_timeout_s: Positive = Field(
        1800, description="Seconds for one batch; a slower engine is stopped and its batch given to another."
    )
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="Lost engines that are replaced, for each model served, before a stage fails."
    )
    keep_while_training: bool | None = Field(
        None,
        description="Keep idle engines during training, or stop them, which frees their resources and nodes; "
        "by default they are kept on CPU and stopped on GPU.",
    )
    parity_tolerance: NonNegative | None = Field(
        None,
        description="Largest mean difference between the engine's and the trainer's log-probabilities, over "
        "the tokens of known answers that depend most on the image, in nats; by default 0.002 in float32 and "
        "0.025 in bfloat16.",
    )

    @model_validator(mode="after")
    def _least_is_not_most(self) -> Self:
        if self.min_engines and self.min_engines > self.num_engines:
            raise ValueError(f"min_engines {self.min_engines} is larger than num_engines {self.num_engines}")
        return self


class EvaluationConfig(Section):
    """What is evaluated, after MTCT and after each round of SARR."""

    pathways: Annotated[list[Pathway], BeforeValidator(as_list)] = Field(
        ["direct", "reasoning"], min_length=1, description="Pathways that answer."
    )
    zero_shot: bool = Field(True, description="Evaluate the base model too, before any training.")
    max_new_tokens: Positive = Field(1024, description="Maximum length of an answer, in tokens.")


class Config(Section):
    """A whole run: Algorithm 1 of the paper over the held-out domains."""

    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run, and of its folder."
    )
    storage: str = Field(
        "rdmldg-store", description="Local path or s3://bucket/prefix where data sets and runs are stored."
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0, description="Seed of training and sampling; the splits depend on data.trial_seed."
    )
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    mtct: MtctConfig = MtctConfig()
    sarr: SarrConfig = SarrConfig()
    workers: WorkersConfig = WorkersConfig()
    engines: EnginesConfig = EnginesConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: Annotated[list[Tracker], BeforeValidator(as_list)] = Field(
        ["tensorboard"], description="Trackers that get the training metrics besides metrics.jsonl."
    )

    @model_validator(mode="after")
    def _answers_fit(self) -> Self:
        for name, tokens in (
            ("sarr.max_new_tokens", self.sarr.max_new_tokens),
            ("evaluation.max_new_tokens", self.evaluation.max_new_tokens),
        ):
            if tokens >= self.model.max_length:
                raise ValueError(
                    f"{name} {tokens} leaves no room for the prompt in "
                    f"model.max_length {self.model.max_length}"
                )
        return self

    @model_validator(mode="after")
    def _bfloat16_is_sharded(self, info: ValidationInfo) -> Self:
        # Runs of earlier releases have it in their configs and stay readable.
        if info.context == RECORDED:
            return self
        if self.model.dtype == "bfloat16" and self.workers.zero_stage == 0:
            raise ValueError(
                "workers.zero_stage 0 with model.dtype bfloat16 has DeepSpeed take a step of Adam before "
                "there are gradients, and its bias correction is a step too far; set "
                "workers.zero_stage=1, which shards the optimizer's state alone"
            )
        return self

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.sarr.rounds > 0 and self.mtct.weights.reasoning == 0:
            raise ValueError(
                "sarr.rounds needs the reasoning pathway, but mtct.weights.reasoning is 0; "
                "set sarr.rounds=0 for labels only"
            )
        if self.sarr.without_chain == "labels" and self.mtct.weights.direct == 0:
            raise ValueError(
                "sarr.without_chain 'labels' needs the direct pathway, but mtct.weights.direct is 0; "
                "set it to 'drop' or 'teacher'"
            )
        if (self.workers.gpus_per_worker > 0) != (self.engines.gpus_per_engine > 0):
            raise ValueError(
                "workers.gpus_per_worker and engines.gpus_per_engine must both be 0 or both be positive"
            )
        if self.model.attention == "flex" and self.workers.gpus_per_worker == 0:
            raise ValueError(
                "model.attention 'flex' trains on GPUs only, for torch has no backward pass of it on CPU; "
                "set it to 'sdpa', or workers.gpus_per_worker and engines.gpus_per_engine"
            )
        for stage, training in (("mtct", self.mtct), ("sarr.training", self.sarr.training)):
            for part, rate in training.learning_rates:
                if rate is not None and part not in self.lora.parts:
                    raise ValueError(
                        f"{stage}.learning_rates.{part} is set, but lora.parts does not have '{part}', which "
                        "is not trained then"
                    )
            if training.batch_size < self.workers.num_workers:
                raise ValueError(
                    f"{stage}.batch_size {training.batch_size} is smaller than workers.num_workers "
                    f"{self.workers.num_workers}: every worker needs an image in every step"
                )
        return self
