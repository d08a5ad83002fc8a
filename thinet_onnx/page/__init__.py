"""The report as one HTML file that needs nothing else: no server, no other file, no network.

Names of nodes, files and classes are text of strangers. Jinja escapes them in the templates, MarkupSafe in the drawings, and
the page's own policy lets no script run but the one that is in the templates.
"""

import base64
import hashlib
import os
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from thinet_onnx import report as reports
from thinet_onnx import wording
from thinet_onnx._version import __version__
from thinet_onnx.page import answers, charts, headline, rows
from thinet_onnx.result import Report

__all__ = ["render", "write"]


def write(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the page, whole or not at all.

    Raises:
        OutputError: `path` can't be written.
    """
    reports.write_whole(render(report), path)


def render(report: Report) -> str:
    """The page's HTML."""
    templates = _templates()
    style, script = (_part(name) for name in ("style.css", "script.js"))
    shown = rows.shown(report)
    reasons, more_reasons = rows.reasons(report)
    return templates.get_template("page.html").render(
        report=report, version=__version__, style=style, script=script, script_hash=_hash(script),
        title=headline.title(report), sentence=headline.sentence(report), cards=list(headline.cards(report)),
        groups=rows.groups(shown, report.before.macs), more_groups=len(report.groups) - len(shown),
        profile=charts.profile(shown),
        tradeoff=charts.tradeoff(report.tradeoff, report.before.macs),
        sensitivities=charts.sensitivities(shown, report.before.macs),
        outputs=answers.outputs(report), more_outputs=max(0, len(report.fidelity) - answers.MOST_OUTPUTS),
        few=answers.remark(report), examples=answers.examples(report),
        training=[] if report.finetune is None else charts.training(report.finetune),
        reasons=reasons, more_reasons=more_reasons, plan=rows.plan(report), run=rows.run(report),
        oracle=rows.oracle(report), wording=wording,
    )  # fmt: skip


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("thinet_onnx.page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


def _part(name: str) -> Markup:
    """A file of the templates as it is."""
    environment = _templates()
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
