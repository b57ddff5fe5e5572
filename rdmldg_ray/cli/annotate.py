"""``annotate``: a teacher writes the chains."""

import os
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from rdmldg_ray.cli.base import Debug, Json, Storage, answering, app, console, mistakes_explained
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.builtin.embedded import is_embedded, write_embedded
from rdmldg_ray.datasets.schema import info_location, read_dataset_info
from rdmldg_ray.models.folder import check_model, looks_local, model_folder
from rdmldg_ray.runtime.errors import WorkFailed
from rdmldg_ray.runtime.progress import progress_bar
from rdmldg_ray.storage import absolute, check_writable, exists
from rdmldg_ray.teacher.annotate import Annotation, Outcome, Request
from rdmldg_ray.teacher.client import Endpoint
from rdmldg_ray.teacher.pricing import Price, known_price

_VLLM = "vllm"


@app.command()
def annotate(
    dataset: Annotated[str, typer.Argument(help="A data set on storage, or iconbed.")],
    vllm_arguments: Annotated[
        list[str] | None, typer.Argument(help="After --: more arguments of `vllm serve`.")
    ] = None,
    teacher: Annotated[
        str, typer.Option(help="A model of the endpoint, or 'vllm' for one that is served here.")
    ] = "gpt-4o",
    model: Annotated[
        str | None, typer.Option(help="With --teacher vllm: a folder, a hub id, or 'tiny'.")
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(help="Of any OpenAI-compatible API; otherwise OPENAI_BASE_URL, or OpenAI's own."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The chains' name, for data.chains; the model's by default.")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="At most so many answers for each sample.")] = 3,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 1024,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Of the draws; the server's default when not given.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at the same time.")] = 16,
    max_cost: Annotated[
        float | None, typer.Option(min=0, help="US dollars for all answers of this name, earlier ones too.")
    ] = None,
    max_samples: Annotated[
        int | None, typer.Option(min=1, help="Samples to ask about, those asked about earlier too.")
    ] = None,
    prices: Annotated[
        tuple[float, float] | None,
        typer.Option(help="US dollars for a million tokens of prompts, and of answers.", metavar="IN OUT"),
    ] = None,
    storage: Storage = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print an estimate of tokens and cost, and stop.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask a teacher for five-stage chains, the label withheld; an interrupted call goes on where it was.

    The API key is taken from OPENAI_API_KEY, and from nowhere else.
    """
    with mistakes_explained(debug), answering(as_json) as answer:
        asked = _model_name(teacher, model, vllm_arguments)
        root = absolute(storage or Config().storage)
        price = Price(*prices) if prices else Price(0, 0) if teacher == _VLLM else known_price(asked)
        request = Request(
            asked,
            name or asked.replace("/", "-"),
            candidates,
            max_tokens,
            temperature,
            concurrency,
            price,
            max_cost,
            max_samples,
        )
        with ExitStack() as stack:
            planned = root
            if dry_run and is_embedded(dataset) and not exists(info_location(root, dataset)):
                planned = stack.enter_context(tempfile.TemporaryDirectory())
            elif not dry_run:
                check_writable(root)
            write_embedded(planned, dataset)
            annotation = Annotation(planned, read_dataset_info(planned, dataset), request)
            planned_work = _print_estimate(annotation)
            if dry_run or not annotation.pending:
                if not dry_run:
                    console.print("nothing to do", highlight=False)
                return answer(planned_work)
            endpoint = Endpoint(asked, base_url)
            if teacher == _VLLM:
                from rdmldg_ray.teacher.local_server import vllm_server

                assert model is not None
                with console.status("starting vllm serve"):
                    server = stack.enter_context(
                        vllm_server(str(model_folder(model)), asked, vllm_arguments or ())
                    )
                endpoint = Endpoint(asked, server.base_url, server.api_key)
            bar = stack.enter_context(progress_bar(console, "samples"))
            outcome = annotation.run(endpoint, bar.update)
        _print_outcome(annotation, outcome)
        answer({"source": request.source, "location": annotation.store.location, **asdict(outcome)})
        if outcome.failed:
            raise WorkFailed(
                f"{outcome.failed.total()} samples got no answer; run the same command again to ask for them"
            )


def _model_name(teacher: str, model: str | None, vllm_arguments: list[str] | None) -> str:
    """What the model is called in requests and in the chains."""
    if teacher != _VLLM:
        if model or vllm_arguments:
            raise ValueError(
                "--model and arguments of `vllm serve` go with --teacher vllm; name the endpoint's "
                "model with --teacher"
            )
        return teacher
    if not model:
        raise ValueError("--teacher vllm needs --model: a folder, a hub id, or 'tiny'")
    check_model(model)
    # A folder's place on this machine says nothing to others.
    return Path(os.path.abspath(os.path.expanduser(model))).name if looks_local(model) else model


def _print_estimate(annotation: Annotation) -> dict[str, Any]:
    request, store, found = annotation.request, annotation.store, annotation.estimate()

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    say(f"{annotation.total} samples of {annotation.info.name}, {annotation.finished} done")
    if store.answers:
        spent = f", ${store.cost:.4f}" if request.price else ""
        say(f"so far: {store.answers} answers, {store.prompt_tokens + store.answer_tokens} tokens{spent}")
    say(
        f"to ask: {found.samples} samples, 1 to {found.candidates} answers each; with one each about "
        f"{found.prompt_tokens} tokens of prompts and {found.answer_tokens} of answers"
    )
    dollars = found.cost(request.price) if request.price else None
    if dollars:
        least, most = dollars
        limit = "" if request.max_cost is None else f"; --max-cost stops at ${request.max_cost:.2f} in all"
        say(f"cost: about ${least:.2f} with one answer each, ${most:.2f} with {found.candidates}{limit}")
    else:
        say(f"cost: the price of '{request.model}' is not known; give it with --prices IN OUT")
    return {
        "samples": annotation.total,
        "done": annotation.finished,
        "to_ask": asdict(found),
        "dollars_least_and_most": dollars,
    }


def _print_outcome(annotation: Annotation, outcome: Outcome) -> None:
    rejected = ", ".join(f"{count} {reason}" for reason, count in outcome.rejected.most_common())
    rejected = f" ({rejected})" if rejected else ""
    console.print(
        f"{outcome.kept} chains kept, {outcome.rejected.total()} rejected{rejected}, in "
        f"{annotation.store.location}; train on them with data.chains={annotation.request.source}",
        highlight=False,
        soft_wrap=True,
    )
    for message, count in outcome.failed.most_common():
        console.print(f"{count} samples without an answer: {message}", highlight=False, markup=False)
    if outcome.stopped:
        console.print(f"stopped: {outcome.stopped}", highlight=False, soft_wrap=True)
