"""A run's config, typed and checked: its sections, and ``Config``, the whole.

The defaults are the paper's (arXiv 2602.23777) where it gives a number.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Pathway = Literal["direct", "reasoning"]
Dtype = Literal["float32", "bfloat16"]
Tracker = Literal["tensorboard", "mlflow", "wandb"]


class Section(BaseModel):
    """Frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def as_list(value: Any) -> Any:
    """On the command line a list may be written ``a,b`` and a list of one ``a``."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int | float) else value


class DataConfig(Section):
    """Which images and chains, and how they are split."""

    dataset: str = Field("iconbed", description="A data set below <storage>/datasets.")
    held_out: Annotated[list[str], BeforeValidator(as_list)] = Field(
        ["all"],
        min_length=1,
        description="Domains to hold out, one run of the method for each, or several together as 'a+b'; "
        "or 'all' in turn, 'pairs' (for leave-one-domain-out cross-validation), 'single-source'.",
    )
    chains: str = Field("rules", description="The teacher whose chains MTCT trains on.")
    trial_seed: Annotated[int, Field(ge=0)] = Field(
        0, description="DomainBed's trial seed; fixes the splits."
    )
    holdout_fraction: Fraction = Field(
        0.2, description="Share of each domain that DomainBed calls its 'out' part."
    )
    classes: Literal["all", "base"] = Field(
        "all",
        description="Classes that are trained and validated on: all, or the first half of them, sorted, to "
        "measure what carries over to the others. All are offered as options and tested on.",
    )
    augment: Literal["none", "domainbed"] = Field(
        "none", description="Training images as they are, or augmented as DomainBed does."
    )


class ModelConfig(Section):
    """The base model. ``tiny`` is the one in this package, any other value a folder or a hub id."""

    path: str = "tiny"
    dtype: Dtype = "bfloat16"
    mixed_precision: Literal[True, False, "auto"] = Field(
        False,
        description="Train float32 weights with matrix products in bfloat16 (torch's autocast); 'auto': "
        "where every worker's processor has instructions for it, without which it is slower.",
    )
    attention: Literal["sdpa", "eager", "flex"] = Field(
        "sdpa",
        description="How training computes attention: 'flex' is torch's FlexAttention in the decoder, which "
        "skips what the pathways do not see of each other. It trains on GPUs only, where it has not been run "
        "yet; what was checked is its arithmetic on CPU.",
    )
    max_length: Positive = Field(4096, description="Longest prompt plus answer, in tokens.")
    image_settings: dict[str, Any] = Field(
        {},
        description="Settings of the model's image processor other than its own, for trainer and engines "
        "alike, such as crop_to_patches: false.",
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
        description="False for full fine-tuning: the parts' own weights are trained, without adapters, "
        "which wants a far smaller learning rate.",
    )
    rank: Positive = 8
    alpha: Positive = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    parts: Annotated[list[Literal["vision", "connector", "decoder"]], BeforeValidator(as_list)] = Field(
        ["vision", "decoder"], min_length=1
    )


class PathwayWeights(Section):
    """Weights of the two terms of the MTCT loss."""

    direct: NonNegative = 1.0
    reasoning: NonNegative = 1.0


class TrainingConfig(Section):
    """One stage of training: the optimizer and its batches."""

    epochs: Positive = 3
    batch_size: Positive = Field(128, description="Images in one optimizer step, over all workers.")
    micro_batch_size: Positive = Field(4, description="Images in one forward pass of one worker.")
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    weight_decay: NonNegative = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    checkpoint_every: Positive = Field(50, description="Optimizer steps between checkpoints.")

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
    label_reduction: Literal["sum", "mean"] = "sum"

    @model_validator(mode="after")
    def _some_pathway(self) -> Self:
        if self.weights.direct == 0 and self.weights.reasoning == 0:
            raise ValueError("weights.direct and weights.reasoning are both 0: nothing to train on")
        return self


class FilterConfig(Section):
    """Which of the model's own chains are kept, beyond the paper's filter; none is no bound."""

    min_tokens: Positive | None = Field(None, description="Shortest kept chain, in tokens.")
    max_tokens: Positive | None = Field(None, description="Longest kept chain, in tokens.")
    max_repetition: Share | None = Field(
        None, description="Largest share of a kept chain's 4-grams of words that are repeats of others."
    )
    min_logprob: float | None = Field(
        None, le=0, description="Least mean log-probability of a token of a kept chain."
    )
    min_label_prob: Share | None = Field(
        None, description="Least probability that the direct pathway gives the label."
    )
    min_agreement: Share | None = Field(
        None,
        description="Least share of an image's candidates with the kept chain's conclusion; "
        "judged when all are drawn.",
    )

    @model_validator(mode="after")
    def _some_length_is_left(self) -> Self:
        if self.min_tokens and self.max_tokens and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is larger than max_tokens {self.max_tokens}")
        return self


class SarrConfig(Section):
    """Stage 2, Self-Aligned Reasoning Regularization."""

    rounds: Annotated[int, Field(ge=0)] = 3
    sampling: Literal["until_accepted", "fixed"] = Field(
        "until_accepted",
        description="Draw again only for images without a kept chain, or max_attempts times for every image.",
    )
    max_attempts: Positive = Field(4, description="Most draws for an image; with 'fixed' all of them.")
    temperatures: Annotated[list[NonNegative], BeforeValidator(as_list)] = Field(
        [1.0], min_length=1, description="Temperature by attempt; the last serves all later ones."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: Positive = 1024
    filter: FilterConfig = FilterConfig()
    best_by: Literal["logprob", "num_tokens", "repetition"] = Field(
        "logprob",
        description="Of an image's accepted chains, the one with the highest mean log-probability, the "
        "fewest tokens or the least repetition is trained on.",
    )
    without_chain: Literal["drop", "teacher", "labels"] = Field(
        "drop",
        description="Images without an accepted chain: left out of the round (the paper), trained on the "
        "teacher's chain, or on their label alone.",
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

    num_workers: Positive = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: NonNegative = 0.0
    zero_stage: Literal[0, 1, 2, 3] = 0
    gradient_checkpointing: bool = Field(
        False, description="Keep few activations and compute the others again: less memory, more time."
    )
    max_failures: Annotated[int, Field(ge=-1)] = Field(
        3, description="Restarts from the last checkpoint before a stage gives up; -1 for no limit."
    )
    scheduling_timeout_s: Positive = Field(
        1800,
        description="A stage that finds no room for its workers ends after this, and says what it lacks.",
    )


class EnginesConfig(Section):
    """The pool of vLLM engines that writes chains and answers in evaluation."""

    num_engines: Positive = 1
    min_engines: Positive | None = Field(
        None,
        description="Work with fewer engines, down to this number, while the cluster has no room for all "
        "of them; by default all are waited for.",
    )
    cpus_per_engine: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_engine: Annotated[int, Field(ge=0)] = Field(0, description="Also the tensor-parallel size.")
    dtype: Dtype = "bfloat16"
    batch_size: Positive = Field(256, description="Images handed to an engine at once.")
    gpu_memory_utilization: Fraction = 0.85
    cpu_kv_cache_gib: Positive = Field(1, description="KV cache of an engine on CPU, in GiB.")
    start_timeout_s: Positive = 900
    batch_timeout_s: Positive = Field(
        1800, description="An engine that takes longer for a batch is ended, and its batch given to another."
    )
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="Lost engines that are asked for anew, for each model served, before a stage gives up."
    )
    keep_while_training: bool | None = Field(
        None,
        description="Keep idle engines during training, or end them so that training gets their "
        "resources and nodes can go; by default they are kept on CPU and ended on GPU.",
    )
    parity_tolerance: NonNegative | None = Field(
        None,
        description="Largest mean difference between the engine's and the trainer's log-probability of "
        "a token, in nats; by default 0.02 in float32 and 0.1 in bfloat16.",
    )

    @model_validator(mode="after")
    def _least_is_not_most(self) -> Self:
        if self.min_engines and self.min_engines > self.num_engines:
            raise ValueError(f"min_engines {self.min_engines} is larger than num_engines {self.num_engines}")
        return self


class EvaluationConfig(Section):
    """Which pathways answer, and after which stages."""

    pathways: Annotated[list[Pathway], BeforeValidator(as_list)] = Field(
        ["direct", "reasoning"], min_length=1
    )
    zero_shot: bool = True
    max_new_tokens: Positive = 1024


class Config(Section):
    """A whole run: Algorithm 1 of the paper over the held-out domains."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    storage: str = Field(
        "rdmldg-store", description="Local path or s3://bucket/prefix for data sets and runs."
    )
    seed: Annotated[int, Field(ge=0)] = 0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    mtct: MtctConfig = MtctConfig()
    sarr: SarrConfig = SarrConfig()
    workers: WorkersConfig = WorkersConfig()
    engines: EnginesConfig = EnginesConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: Annotated[list[Tracker], BeforeValidator(as_list)] = Field(
        ["tensorboard"], description="Where training metrics go besides metrics.jsonl."
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
            if training.batch_size < self.workers.num_workers:
                raise ValueError(
                    f"{stage}.batch_size {training.batch_size} is smaller than workers.num_workers "
                    f"{self.workers.num_workers}: every worker needs an image in every step"
                )
        return self
