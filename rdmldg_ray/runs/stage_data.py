"""What the stages of a run see: source domains in training and generation, all domains in evaluation."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from rdmldg_ray.chains.attach import CHAIN_COLUMNS, attach_chains
from rdmldg_ray.chains.coverage import uneven_classes
from rdmldg_ray.chains.store import chain_files, read_chain_file, read_chains
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.index import base_classes, sample_index, take_split
from rdmldg_ray.datasets.schema import DatasetInfo, chains_location
from rdmldg_ray.domainbed.folds import fold_domains
from rdmldg_ray.runs.store import RunStore, Stage

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Coverage:
    """What the teacher's chains leave open for a stage.

    Attributes:
        without: classes of the training split that no accepted chain is of.
        long: whether a chain may be too long for the model.
    """

    without: tuple[str, ...]
    long: bool


@dataclass(frozen=True)
class StageData:
    """The data of a run's stages, as indices without images (``datasets.index.sample_index``)."""

    config: Config
    info: DatasetInfo

    def source_index(self, held_out: str, split: Literal["in", "out"]) -> pa.Table:
        """One split of the source domains; of the base classes alone, where the config says so."""
        return self._trained_split(self._sources(held_out), split)

    def evaluation_set(self, held_out: str) -> pa.Table:
        """The sources' ``out`` splits and the whole held-out domain, with ``split`` and ``held_out``."""
        data = self.config.data
        target = sample_index(self.config.storage, self.info, fold_domains(held_out))
        parts = [(self.source_index(held_out, "out"), "out", False)]
        for split in ("in", "out"):
            rows = take_split(
                index=target,
                info=self.info,
                split=split,
                trial_seed=data.trial_seed,
                holdout_fraction=data.holdout_fraction,
            )
            parts.append((rows, split, True))
        for rows, split, is_target in parts:
            if not len(rows):
                which = f"held-out {held_out}" if is_target else "source domains"
                raise ValueError(
                    f"data set {self.info.name}, {held_out} held out: the '{split}' split of the {which} has "
                    "no image to evaluate on, for those in it were rejected by the ingest, or are of no base "
                    "class; raise data.holdout_fraction, or ingest more images"
                )
        return pa.concat_tables(
            rows.append_column("split", pa.repeat(split, len(rows))).append_column(
                "held_out", pa.repeat(is_target, len(rows))
            )
            for rows, split, is_target in parts
        )

    def probe_set(self, held_out: str) -> pa.Table:
        """The ``out`` splits of all domains, with the teacher's chains."""
        samples = self.evaluation_set(held_out).filter(pc.field("split") == "out")
        return attach_chains(samples, *self._teacher_chains(self.info.environments), warn=False)

    def training_set(self, stage: Stage) -> tuple[pa.Table, int]:
        """What a stage trains on, with a column ``chain``, and how many source images are not in it.

        Raises:
            ValueError: when there are no chains to train on, or one is not well-formed.
        """
        samples = self.source_index(stage.held_out, "in")
        chosen = self._teacher_set(stage, samples) if stage.kind == "mtct" else self._own_set(stage, samples)
        # In one piece: to take rows of a column of several puts them all together, each time.
        return chosen.combine_chunks(), len(samples) - len(chosen)

    def check_chains(self, stage: Stage) -> "Coverage":
        """Read the teacher's chains as a training will, but little at a time; raises as ``training_set``.

        Says which classes are left with fewer images than others, where there are such; those that are left
        with none are the caller's to name.
        """
        longest = 0
        if self.config.mtct.weights.reasoning == 0:
            return Coverage((), False)
        accepted: set[str] = set()
        images: list[tuple[str, bool]] = []
        for domain in self._sources(stage.held_out):
            samples = self._trained_split([domain], "in")
            location = chains_location(self.config.storage, self.info.name, self.config.data.chains, domain)
            for file in chain_files(self.config.storage, self.info.name, self.config.data.chains, [domain]):
                chains = read_chain_file(file, CHAIN_COLUMNS)
                found = attach_chains(samples, chains, location, may_be_none=True)
                longest = max(longest, pc.max(_reach(found["chain"])).as_py() or 0)
                accepted.update(found["id"].to_pylist())
            names, labels = samples["id"].to_pylist(), samples["label"].to_pylist()
            images += [(label, name in accepted) for name, label in zip(names, labels, strict=True)]
        if not accepted:
            self.training_set(stage)
        without = {label for label, _ in images} - {label for label, has_chain in images if has_chain}
        if uneven := uneven_classes(image for image in images if image[0] not in without):
            _log.warning("%s held out: %s", stage.held_out, uneven)
        return Coverage(tuple(sorted(without)), longest > self.config.model.max_length)

    def long_chains(self, stage: Stage) -> list[tuple[str, int]]:
        """Samples of MTCT whose prompt and chain are longer than ``model.max_length``, with their tokens.

        Loads the model's processor; call it in a task.
        """
        return self._long(self._with_teacher(self.source_index(stage.held_out, "in"), stage))

    def _trained_split(self, domains: Sequence[str], split: Literal["in", "out"]) -> pa.Table:
        data = self.config.data
        index = sample_index(self.config.storage, self.info, domains)
        rows = take_split(
            index=index,
            info=self.info,
            split=split,
            trial_seed=data.trial_seed,
            holdout_fraction=data.holdout_fraction,
        )
        if data.classes == "base":
            rows = rows.filter(pc.field("label").isin(base_classes(self.info.classes)))
        return rows

    def _teacher_set(self, stage: Stage, samples: pa.Table) -> pa.Table:
        if self.config.mtct.weights.reasoning == 0:  # labels only
            return samples.append_column("chain", pa.repeat(pa.scalar("", pa.large_string()), len(samples)))
        return self._without_long(self._with_teacher(samples, stage))

    def _with_teacher(self, samples: pa.Table, stage: Stage) -> pa.Table:
        # Of these chains ``check_chains`` warns.
        return attach_chains(samples, *self._teacher_chains(self._sources(stage.held_out)), warn=False)

    def _without_long(self, training_set: pa.Table) -> pa.Table:
        """Without images whose teacher's chain is too long, where the config says so."""
        if self.config.data.long_chains != "drop":
            return training_set
        dropped = pa.array([sample_id for sample_id, _ in self._long(training_set)], pa.string())
        return training_set.filter(pc.invert(pc.is_in(training_set["id"], value_set=dropped)))

    def _long(self, training_set: pa.Table) -> list[tuple[str, int]]:
        most = self.config.model.max_length
        long = training_set.filter(pc.greater(_reach(training_set["chain"]), most))
        if not len(long):
            return []
        from rdmldg_ray.mtct.lengths import long_samples

        return long_samples(long, list(self.info.classes), self.config)

    def _own_set(self, stage: Stage, samples: pa.Table) -> pa.Table:
        location = RunStore(self.config.storage, self.config.name).selected_uri(stage.held_out, stage.model)
        # A round that keeps no chain still trains, where its images are to be trained on something else.
        may_be_none = self.config.sarr.without_chain != "drop"
        own = attach_chains(samples, read_chain_file(location, CHAIN_COLUMNS), location, may_be_none)
        rest = samples.filter(pc.invert(pc.is_in(samples["id"], own["id"].combine_chunks())))
        match self.config.sarr.without_chain:
            case "teacher":
                chains, location = self._teacher_chains(self._sources(stage.held_out))
                others = attach_chains(rest, chains, location, may_be_none=True, warn=False)
                return pa.concat_tables([own, self._without_long(others)])
            case "labels":
                no_chains = pa.nulls(len(rest), pa.large_string())
                return pa.concat_tables([own, rest.append_column("chain", no_chains)])
            case "drop":
                return own

    def _teacher_chains(self, domains: Sequence[str]) -> tuple[pa.Table, str]:
        root, dataset, teacher = self.config.storage, self.info.name, self.config.data.chains
        chains = read_chains(root=root, name=dataset, teacher=teacher, domains=domains, columns=CHAIN_COLUMNS)
        return chains, chains_location(root, dataset, teacher)

    def _sources(self, held_out: str) -> list[str]:
        return [domain for domain in self.info.environments if domain not in fold_domains(held_out)]


def _reach(chains: pa.ChunkedArray) -> pa.ChunkedArray:
    """A measure of texts that, up to ``model.max_length``, leaves room for a prompt, whatever the tokenizer.

    ASCII counts by its characters, of which a token has several. In other scripts a character may be as many
    tokens as it has bytes, so that these count, and almost twice. Where a prompt is longer still, training
    itself refuses a chain, when it meets it.
    """
    return pc.subtract(pc.multiply(2, pc.binary_length(chains)), pc.utf8_length(chains))
