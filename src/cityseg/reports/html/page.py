"""From a template and figures to the text of one HTML file."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cityseg.reports.html import text
from cityseg.reports.summary import ABSENT, percent


def render(template: str, **content: Any) -> str:
    """Fill a template of ``reports/templates``; every value is escaped, and a name that is missing is an error."""
    environment = Environment(
        loader=PackageLoader("cityseg.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"score_names": text.SCORE_NAMES, "absent": ABSENT}
    environment.filters |= {
        function.__name__: function
        for function in (
            percent,
            text.breakable,
            text.compact,
            text.interval,
            text.mean_and_std,
            text.minutes,
            text.parameters,
            text.p_value,
            text.points,
            text.points_interval,
        )
    }
    return environment.get_template(template).render(content)
