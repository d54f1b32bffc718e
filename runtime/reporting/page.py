# SPDX-License-Identifier: Apache-2.0
"""The report: one HTML file that needs nothing but itself. All numbers come from the summary; here they are only laid out.

The page's own Content-Security-Policy forbids every load and every script; its one style sheet is allowed by its hash, so
text from records can bring neither markup (everything is escaped) nor style. Long lists are folded and cut, and say so, so
that the report of a thousand tasks opens as fast as that of ten.
"""

import base64
import functools
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.runtime.privacy.charging import per
from osmotic.runtime.reporting import cards, curves, dots, frontier, words
from osmotic.runtime.reporting.beside import laid_out
from osmotic.runtime.reporting.crossed import crossed, parties_of, roles_of, times, with_labels
from osmotic.runtime.reporting.dots import scale
from osmotic.runtime.reporting.graph import lay_out
from osmotic.runtime.reporting.lines import draw
from osmotic.runtime.results import survivors
from osmotic.runtime.screen.tables import number_of
from osmotic.runtime.secure.telling import summed
from osmotic.schemas.errors import DataError, Problem

if TYPE_CHECKING:
    from jinja2 import Environment

FILTERS = ("number", "signed", "size", "time", "text", "cut", "voids_of", "beside")
FOLDER = "osmotic.runtime.reporting"
MANY = 200  # rows of one table that are shown


def render(summary: Mapping[str, Any], *, title: str | None = None) -> str:
    """The report of a run as HTML: `summary` is what `runtime.results.summary.summarise` returns.

    Optional keys: ``ledger``, the parties' `gather.books`; ``party``, whose own report it is; ``lock``, what was installed.
    `title` replaces the pipeline's name in the heading.
    """
    from markupsafe import Markup

    css = files(FOLDER).joinpath("report.css").read_text("utf-8")
    style_hash = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    template = _environment().get_template("page.html")
    page = template.render(
        s={**OPTIONAL, **summary}, css=Markup(css), style_hash=style_hash, many=MANY, **_shown(summary, title)
    )
    return page.lstrip().encode("utf-8", "replace").decode("utf-8")  # a lone surrogate could not be written to a file


@functools.lru_cache(maxsize=1)
def _environment() -> "Environment":
    """The templates: compiled once a process, though every party writes a report."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = files(FOLDER).joinpath("templates")
    loader = FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8"))
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update({name: getattr(words, name) for name in FILTERS}, tone=words.tone_of, per=per)
    return environment


def rendered(summary: Mapping[str, Any], folder: Path) -> str:
    """The report of a summary that was saved before; raises DataError where another version wrote it."""
    from jinja2 import TemplateError

    try:
        return render(summary)
    except (KeyError, TypeError, TemplateError) as error:
        what, why = "the saved summary cannot be shown", "another version of osmotic wrote it, or it was changed"
        raise DataError(Problem(what, str(folder), why=why, fix="run the pipeline again: what is finished is kept")) from error


OPTIONAL: Mapping[str, Any] = {
    "ledger": (), "rounds": (), "curves": (), "costs": (), "reasons": (), "party": "", "source": None, "lock": None,
}  # fmt: skip


def _shown(summary: Mapping[str, Any], title: str | None) -> dict[str, Any]:
    """Everything that is computed for the templates."""
    roles, table, accounts = roles_of(summary), summary["table"], summary["guarantee"]["parties"]
    party = summary.get("party", "")
    graph = lay_out(with_labels(summary), parties_of(roles))
    lines = draw(summary.get("chart"), scale)
    return {
        "title": title or (f"{summary['pipeline']}: the report of {party}" if party else summary["pipeline"]),
        "tone": words.run_tone(accounts),
        "tones": {row: words.run_tone(found) for row, found in summary["guarantee"].get("rows", {}).items()},
        "plainly": words.plainly(accounts),
        "parties": parties_of(roles),
        "graph": graph,
        "lines": lines,
        "frontier": frontier.draw(summary.get("frontier"), scale),
        "curves": [curves.draw(one, scale) for one in summary.get("curves", ())],
        "charts": [] if lines else [dots.chart(table, column) for column in table["columns"]],
        "several_seeds": any(len(c["seeds"]) > 1 for row in table["rows"] for c in row["cells"].values()),
        "differences": {(c["row"], c["metric"]): c for c in table["comparisons"]},
        "crossed": crossed(summary, roles, graph.numbers),
        "crossings": number_of(summary["crossings"]),
        "moved": sum(c.get("sent", c["bytes"]) for c in summary["crossings"]),
        "samples": laid_out(summary["samples"]),
        "times": times(summary["outcome"]["times"]),
        "cards": cards.merged(summary.get("ledger", ())),
        "events": cards.counted(summary.get("ledger", ())),
        "expected": {row["task"]: row for row in summary.get("plan", {}).get("calls", ()) if row.get("actual")},
        "meaning": words.MEANING,
        "survivors": survivors.lines(summary),
        "unheard": survivors.unheard(summary),
        "summed": summed(summary),
    }
