"""One look for all progress bars, on a terminal and in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from tqdm import tqdm

SECONDS_BETWEEN_LOG_LINES = 30.0
SECONDS_OF_SHORT_WORK = 3.0
"""The `delay` of bars for work that may be over before a bar is of use."""


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm[Any]:
    """Make a progress bar that updates twice a second on a terminal and rarely in a log file.

    Args:
        iterable: What to go through, if the bar is to move by itself.
        options: Passed on to tqdm.
    """
    on_terminal = sys.stderr.isatty()
    return tqdm(
        iterable,
        dynamic_ncols=on_terminal,
        mininterval=0.5 if on_terminal else SECONDS_BETWEEN_LOG_LINES,
        # Without this a single slow step is shown at once, whatever the interval.
        maxinterval=0.5 if on_terminal else SECONDS_BETWEEN_LOG_LINES,
        **options,
    )


def work_bar(
    iterable: Iterable[Any] | None = None, *, delay: float = SECONDS_OF_SHORT_WORK, **options: Any
) -> tqdm[Any]:
    """Make a bar for work besides the steps of a run: on the first rank, gone when it is over.

    Args:
        iterable: What to go through, if the bar is to move by itself.
        delay: Seconds before the bar is shown; 0 for work whose first part may take minutes.
        options: Passed on to tqdm.
    """
    return progress_bar(
        iterable,
        leave=False,
        delay=delay,
        disable=getattr(rank_zero_only, "rank", 0) != 0,
        **options,
    )
