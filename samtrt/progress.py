"""Progress of work that is done in a few long steps."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress_steps(total: int) -> Iterator[Callable[[str], None]]:
    """Yields a function to call with a text before each of ``total`` steps.

    A bar on a terminal; one line a step elsewhere, so that a log stays readable. Both on stderr.
    """
    if not sys.stderr.isatty():
        count = 0

        def print_step(text: str) -> None:
            nonlocal count
            count += 1
            print(f"[{count}/{total}] {text}", file=sys.stderr, flush=True)

        yield print_step
        return
    with tqdm(total=total, bar_format="{n_fmt}/{total_fmt} {bar:30} {elapsed}  {desc}") as bar:
        begun = False

        def show_step(text: str) -> None:
            nonlocal begun
            bar.update(int(begun))  # the step before is done
            begun = True
            bar.set_description_str(text)

        yield show_step
        bar.update(int(begun))
