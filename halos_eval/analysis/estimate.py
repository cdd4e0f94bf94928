"""An estimate with its interval, and how SciPy is found."""

from __future__ import annotations

from importlib.util import find_spec

from pydantic import BaseModel

from halos_eval.config.settings import FROZEN
from halos_eval.errors import BadInput

CONFIDENCE = 0.95
"""Coverage of all intervals."""


class Estimate(BaseModel):
    """A number with its interval of 95 %."""

    model_config = FROZEN

    value: float
    """The estimate."""
    low: float | None = None
    """Lower bound; None if the data are too few, or do not vary, so that no interval is known."""
    high: float | None = None
    """Upper bound; None like ``low``."""


def check_scipy() -> None:
    """Raise BadInput if this environment has no SciPy, or no statsmodels."""
    if find_spec("scipy") is None or find_spec("statsmodels") is None:
        raise BadInput(
            "this environment has no SciPy or no statsmodels, which the intervals need. Run the command in the judge's "
            "environment (image judge, or .venv/judge/bin/halos-eval)"
        )
