"""Progress on stderr, so that stdout stays clean for results."""

import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from queue import SimpleQueue
from threading import Event
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
R = TypeVar("R")
VERBOSE = "W2W_VERBOSE"  # set by `w2w -v`: other libraries may talk and show their bars
FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} {unit}, {remaining} left"


def track(iterable: Iterable[T], description: str, unit: str, total: int | None = None) -> Iterable[T]:
    """Yield from `iterable` with a progress bar on stderr, drawn only once the work has taken a second.

    description: what is done. unit: what is counted, in the plural, such as "photos".
    """
    pause = 0.5 if sys.stderr.isatty() else 30.0  # a log file should not fill up with bars
    return tqdm(
        iterable,
        desc=description,
        unit=unit,
        total=total,
        delay=1.0,
        mininterval=pause,
        maxinterval=max(10.0, pause),
        dynamic_ncols=True,
        bar_format=FORMAT,
    )


class _Unheard(Exception):
    """Nobody listens any more."""


def as_it_goes(call: Callable[[Callable[[T], None]], R]) -> Generator[T, None, R]:
    """Yield what `call` tells the function that it is given, as it is told; returns what `call` returns.

    The call runs in a thread of its own. A generator that is closed before its end stops the call where it next tells
    something, and waits for that. What the call raises is raised here.
    """
    told: SimpleQueue[T | Future[R]] = SimpleQueue()
    unheard = Event()

    def tell(what: T) -> None:
        if unheard.is_set():
            raise _Unheard
        told.put(what)

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(call, tell)
        result.add_done_callback(told.put)
        try:
            while not isinstance(what := told.get(), Future):
                yield what
        finally:
            unheard.set()
    return result.result()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide the bars that diffusers and transformers draw while they load files; bars of downloads stay.

    With the environment variable W2W_VERBOSE nothing is hidden.
    """
    if os.environ.get(VERBOSE):
        yield
        return
    hub = import_module("huggingface_hub.utils")
    loud, hub_loud = [], not hub.are_progress_bars_disabled()
    for logging in (import_module(f"{library}.utils.logging") for library in ("diffusers", "transformers")):
        if logging.is_progress_bar_enabled():
            logging.disable_progress_bar()
            loud.append(logging)
    if hub_loud:
        hub.enable_progress_bars()  # transformers switches these off with its own
    try:
        yield
    finally:
        for logging in loud:
            logging.enable_progress_bar()


def note(text: str) -> None:
    """Say on stderr, in one line, what the user should know of and what need not stop the work."""
    print("note: " + " ".join(text.split()), file=sys.stderr)
