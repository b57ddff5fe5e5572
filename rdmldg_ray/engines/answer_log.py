"""Answers that are kept as they come, so that a driver that dies has none of them asked for again."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from rdmldg_ray.engines.engine import GenerationRequest
from rdmldg_ray.storage import join, list_files, read_table, write_table


class Writer(Protocol):
    """What answers: an engine pool, or what stands before one."""

    def generate(self, samples: pa.Table, request: GenerationRequest) -> Iterator[pa.Table]:
        """Answers in ``engines.engine.ANSWER_SCHEMA`` for the samples of an index, as they come."""


class AnswerLog:
    """Stands before an engine pool, writes what it answers to storage, and reads that back.

    An answer depends on the model, the sample's id, the request and its seed alone, so one that was given
    before an interruption is the one that would be given now.

    Args:
        location: a folder of the stage's own.
        model: all that tells the model and its inputs from others; answers of another one are not read.
        pool: gives the pool; asked only when there is something to ask of it.
    """

    def __init__(self, location: str, model: Any, pool: Callable[[], Writer]):
        self._location = location
        self._model = model
        self._pool = pool
        self.read_back = 0
        """Answers that were there."""

    def generate(self, samples: pa.Table, request: GenerationRequest) -> Iterator[pa.Table]:
        """Answers in ``engines.engine.ANSWER_SCHEMA``: first those that are there, then new ones."""
        folder = self._folder(request)
        wanted = samples["id"].combine_chunks()
        known = pa.array([], pa.string())
        for part in list_files(folder, ".parquet"):
            answers = read_table(part)
            ids = answers["id"]
            # Two drivers may have asked at once, the first of which was taken for dead.
            fresh = pc.and_(pc.is_in(ids, value_set=wanted), pc.invert(pc.is_in(ids, value_set=known)))
            answers = answers.filter(fresh)
            known = pa.concat_arrays([known, answers["id"].combine_chunks()])
            self.read_back += len(answers)
            if len(answers):
                yield answers
        rest = samples.filter(pc.invert(pc.is_in(samples["id"], value_set=known)))
        if not len(rest):
            return
        for answers in self._pool().generate(rest, request):
            # What went wrong may go right when it is asked for again.
            good = answers.filter(answers["error"].is_null())
            if len(good):
                write_table(join(folder, f"part-{uuid4().hex}.parquet"), good)
            yield answers

    def _folder(self, request: GenerationRequest) -> str:
        identity = hashlib.sha256(repr((self._model, request)).encode()).hexdigest()
        return join(self._location, identity[:16])
