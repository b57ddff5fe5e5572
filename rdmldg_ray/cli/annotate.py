"""``annotate``: a teacher writes the chains."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from rdmldg_ray import api
from rdmldg_ray.cli.base import Ended, app, command, console, print_error, say
from rdmldg_ray.teacher.annotate import Annotation, Outcome


@command(app)
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
    candidates: Annotated[int, typer.Option(min=1, help="Most answers for each sample.")] = 3,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length limit of an answer.")] = 1024,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sampling temperature; the server's default when not given.")
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
    max_equal_rejections: Annotated[
        int,
        typer.Option(min=0, help="Stop after so many answers in a row rejected for one reason; 0: never."),
    ] = 20,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print an estimate of tokens and cost, and stop.")
    ] = False,
    storage: str | None = None,
) -> Any:
    """Ask a teacher for five-section chains, the label withheld. An interrupted call resumes.

    The API key is taken from OPENAI_API_KEY, and from nowhere else.
    """
    request = api.make_request(
        teacher,
        model=model,
        name=name,
        prices=prices,
        candidates=candidates,
        max_tokens=max_tokens,
        temperature=temperature,
        concurrency=concurrency,
        max_cost=max_cost,
        max_samples=max_samples,
        max_equal_rejections=max_equal_rejections,
    )
    annotation = api.plan_annotation(dataset, request, storage=storage, dry_run=dry_run)
    document = _print_estimate(annotation)
    if dry_run:
        return document
    if not annotation.pending:
        say("nothing to do")
        return document
    outcome = api.run_annotation(
        annotation, base_url=base_url, model=model, vllm_arguments=vllm_arguments or (), console=console
    )
    _print_outcome(outcome)
    if outcome.failed:
        samples = outcome.failed.total()
        print_error(f"{samples} samples got no answer; run the same command again to ask for them")
        raise Ended(1, vars(outcome))
    return vars(outcome)


def _print_estimate(annotation: Annotation) -> dict[str, Any]:
    request, store, found = annotation.request, annotation.store, annotation.estimate()

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


def _print_outcome(outcome: Outcome) -> None:
    rejected = ", ".join(f"{count} {reason}" for reason, count in outcome.rejected.most_common())
    rejected = f" ({rejected})" if rejected else ""
    say(
        f"{outcome.accepted} chains accepted, {outcome.rejected.total()} rejected{rejected}, "
        f"in {outcome.location}; train on them with data.chains={outcome.teacher}"
    )
    for message, count in outcome.failed.most_common():
        say(f"{count} samples without an answer: {message}")
    if outcome.stopped:
        say(f"stopped: {outcome.stopped}")
    if outcome.uneven:
        say(f"warning: {outcome.uneven}")
