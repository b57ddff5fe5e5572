"""From what Ray raises back to the user's error that caused it."""


class RunFailedError(Exception):
    """What was asked for was valid, but could not be done; the message says why."""


def user_error(error: BaseException) -> ValueError | TimeoutError | None:
    """The ValueError (or time-out of ours) inside an error, through Ray's wrappers; else None.

    Of several in a chain it is the outermost, which names the remedy as well as the cause. Ray wraps
    what a worker raised: tasks and actors keep it as ``cause``, Ray Train as the failures of its
    workers or of its controller.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        # A task error also subclasses its cause's class; only the cause itself has the bare message.
        wrapped = [
            getattr(current, "cause", None),
            getattr(current, "controller_failure", None),
            *getattr(current, "worker_failures", {}).values(),
        ]
        if isinstance(current, ValueError | TimeoutError) and not any(wrapped):
            return current
        pending += [current.__cause__, *wrapped]
    return None
