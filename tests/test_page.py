"""The page of a run: whole, escaped, within its size, without network, and right in a browser."""

import dataclasses
import html as html_module
import importlib.util
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import small_models
from conftest import NO_BROWSER
from page_reports import EMPTY, FULL, HOSTILE, MANY, NAMES, REPORTS, TOO_MANY, UNKNOWN
from test_report import REPORT
from typer.testing import CliRunner

from thinet_onnx import cli, page, restore
from thinet_onnx import report as reports
from thinet_onnx.errors import OutputError
from thinet_onnx.page import charts, headline, svg
from thinet_onnx.result import Accuracy, ErrorCurve, Latency, Tradeoff, TuneCurve

SECTIONS = ["headline", "groups", "tradeoff", "outputs", "examples", "kept", "run"]
MOST_BYTES = 3_000_000
VOID = {"meta", "img", "input", "br"}


def tool() -> ModuleType:
    place = Path(__file__).parents[1] / "tools" / "screenshots.py"
    spec = importlib.util.spec_from_file_location("screenshots", place)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Page(HTMLParser):
    """The elements of a page with their attributes and the text in them; complains of what isn't closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [a for t, a in self.elements if t == tag and all(a.get(key) == value for key, value in wanted.items())]


@pytest.fixture(params=REPORTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestAnyReport:
    def test_is_well_formed_and_whole(self, name: str) -> None:
        shown = Page(page.render(REPORTS[name]))
        ids = [a["id"] for _, a in shown.elements if "id" in a]
        assert len(ids) == len(set(ids))
        found = [a["id"] for a in shown.all("section")]
        assert [section for section in found if section != "training"] == SECTIONS
        for target in (a["href"] for a in shown.all("a")):
            assert target.removeprefix("#") in ids
        assert "nan" not in re.split(r"\W+", shown.text.lower())
        assert "inf" not in re.split(r"\W+", shown.text.lower())
        assert "None" not in re.split(r"\W+", shown.text)

    def test_is_small_enough(self, name: str) -> None:
        assert len(page.render(REPORTS[name]).encode()) < MOST_BYTES

    def test_loads_nothing(self, name: str) -> None:
        shown = Page(page.render(REPORTS[name]))
        assert not shown.all("link") + shown.all("iframe") + shown.all("object") + shown.all("base") + shown.all("use")
        for tag, attributes in shown.elements:
            for key in ("src", "href", "srcset", "data", "action", "poster", "background"):
                value = attributes.get(key, "#")
                assert value.startswith(("#", "data:image/png;base64,", "data:image/jpeg;base64,")), (tag, value)
            assert "url(" not in attributes.get("style", "")
        (style,) = re.findall(r"<style>(.*?)</style>", page.render(REPORTS[name]), re.S)
        assert "url(" not in style
        assert "@import" not in style

    def test_runs_no_script_but_its_own(self, name: str) -> None:
        html = page.render(REPORTS[name])
        shown = Page(html)
        assert len(shown.all("script")) == 1
        assert html.count("</script>") == 1
        assert html.count("</style>") == 1
        for tag, attributes in shown.elements:
            assert not [key for key in attributes if key.startswith("on")], (tag, attributes)
        (policy,) = shown.all("meta", **{"http-equiv": "Content-Security-Policy"})
        assert "default-src 'none'" in policy["content"]
        assert re.search(r"script-src 'sha256-[\w+/]+=*'", policy["content"])


class TestContents:
    def test_the_figures(self) -> None:
        text = Page(page.render(dataclasses.replace(FULL, model="folder/net.onnx", output="small.onnx"))).text
        for said in (
            "net.onnx", "folder/net.onnx → small.onnx", "target reached asked for macs=50%",
            "50.0% of the MACs remain, and it runs 1.54× faster on the machine of this run",
            "MACs 20.6 M before 41.2 M 50.0% remains", "Parameters 136 k before 272 k 49.9% remains",
            "File size 551 kB before 1.10 MB 50.0% remains", "Latency 0.801 ms before 1.23 ms 1.54× faster",
            "batch 4, median of 200 runs on this machine", "Channels 480 before 720 66.7% remains",
            "Accuracy 92.15% before 92.65% −0.50 points top-1 on 2,000 labelled samples",
            "Warning conv1/Conv", "chosen: 50.9%", "Farthest off", "labelled conv2/Conv", "Fine-tuning", "best: step 1800",
            "groups cut 1 of 1", "seed 5", "2026-01-02 03:04:05 UTC", "1 min 23 s", "to within 2.1e-07, relative",
        ):  # fmt: skip
            assert said in text, said

    def test_shares_do_not_go_beyond_all(self) -> None:
        """Agreement of 100% throughout: the axis ends there, and the words at step 0 stand clear of its title."""
        checks = tuple({"step": step, "loss": 0.1, "agreement": 1.0} for step in (0, 15))
        curve = TuneCurve(((1, 0.1), (15, 0.1)), checks, 0, 15)
        text = Page(page.render(dataclasses.replace(FULL, finetune=curve))).text
        assert "100%" in text and "102%" not in text and "101%" not in text
        (_, loss), (_, agreement) = charts.training(curve)
        assert 'x="71.5"' in agreement and 'x="51"' in loss

    def test_accuracy_says_whether_there_was_training(self) -> None:
        assert FULL.finetune is not None
        for best, how in ((1800, "after fine-tuning"), (0, "without training"), (None, "without training")):
            curve = None if best is None else dataclasses.replace(FULL.finetune, best_step=best)
            assert f"samples, {how};" in Page(page.render(dataclasses.replace(FULL, finetune=curve))).text

    def test_the_command_is_broken_between_words_only(self) -> None:
        command = "thinet-onnx prune 'my  net.onnx' --test-data a.npz <b>"
        text = page.render(dataclasses.replace(FULL, command=command))
        inside = text.partition('<code id="command">')[2].partition("</code>")[0]
        assert "<span>--test-data</span> <span>a.npz</span>" in inside
        assert html_module.unescape(re.sub("</?span>", "", inside)) == command

    def test_every_group_is_a_row_with_its_numbers(self) -> None:
        shown = Page(page.render(FULL))
        rows = [a for a in shown.all("tr") if "data-order" in a]
        assert [row["data-order"] for row in rows] == ["1", "2", "3"]
        assert [row["data-kept"] for row in rows] == ["1.0", "0.5", "0.5"]
        assert [row["data-error"] for row in rows] == ["", "0.01", "0.02"]
        assert "32 of 64 50%" in shown.text
        assert len(shown.all("svg", **{"class": "spark"})) == 3

    def test_a_missed_target_is_no_success(self) -> None:
        html = page.render(EMPTY)
        assert "target missed" in Page(html).text
        assert 'class="badge bad">target missed' in html

    def test_what_was_not_measured_is_said_in_words(self) -> None:
        text = Page(page.render(EMPTY)).text
        for said in (
            "nothing was written", "Its outputs could not be compared", "The report holds no group",
            "Not in this report", "No output could be compared", "The run kept no sample for show",
            "Every channel could go",
        ):  # fmt: skip
            assert said in text, said
        assert "Fine-tuning" not in text
        assert "Latency" not in text
        assert "Accuracy" not in text

    def test_numbers_that_are_none_are_dashes(self) -> None:
        shown = Page(page.render(UNKNOWN))
        for said in ("Latency 0 ms before – not measurable", "24 samples without a finite error", "16 samples without"):
            assert said in shown.text, said
        rows = [a for a in shown.all("tr") if "data-order" in a]
        assert [row["data-error"] for row in rows] == ["", "", "0.0"]
        assert [row["data-kept"] for row in rows] == ["", "0.5", "1.0"]

    def test_too_much_is_cut_short_and_says_so(self) -> None:
        text = Page(page.render(TOO_MANY)).text
        for said in ("2500 more groups", "260 more reasons", "76 more outputs", "and 27 more, in the JSON report"):
            assert said in text, said

    def test_names_are_text(self) -> None:
        text = Page(page.render(HOSTILE)).text
        for wild in NAMES:
            assert " ".join(wild.split()) in text, wild

    def test_outputs_that_are_no_numbers_are_no_success(self) -> None:
        said = headline.sentence(UNKNOWN)
        assert "runs" not in said
        assert said.endswith("Its outputs hold what is no number, or are infinitely far off: all, some.")

    def test_few_samples_are_called_so(self) -> None:
        assert "Only 24 samples held out" in Page(page.render(FULL)).text

    def test_without_labels_it_is_no_accuracy(self) -> None:
        cards = {card.title: card for card in headline.cards(dataclasses.replace(REPORT, accuracy=None))}
        assert cards["Same best class"].after == "98.1%"
        assert "isn't accuracy" in cards["Same best class"].note
        plain = dataclasses.replace(REPORT, accuracy=None, fidelity=REPORT.fidelity[1:])
        assert {card.title: card for card in headline.cards(plain)}["Relative error"].after == "25.0%"

    @pytest.mark.parametrize(
        ("before", "after", "said", "tone"),
        [
            (2.0, 1.0, "2.00× faster", "good"),
            (1.0, 2.0, "2.00× slower", "bad"),
            (1.0, 0.99, "about as fast as before", ""),
            (0.0, 1.0, "not measurable", ""),
        ],
    )
    def test_speed(self, before: float, after: float, said: str, tone: str) -> None:
        timed = dataclasses.replace(REPORT, latency=Latency(before, after, 1, 9))
        card = {card.title: card for card in headline.cards(timed)}["Latency"]
        assert (card.change, card.tone) == (said, tone)

    def test_a_better_accuracy(self) -> None:
        better = dataclasses.replace(REPORT, accuracy=Accuracy(0.5, 0.51, 100))
        card = {card.title: card for card in headline.cards(better)}["Accuracy"]
        assert card.change == "+1.00 points"
        assert "one sample is 1 points" in card.note


class TestCharts:
    @pytest.mark.parametrize(
        ("low", "high", "ticks"),
        [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 0, [0]), (3, 41, [10, 20, 30, 40]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
    )
    def test_ticks(self, low: float, high: float, ticks: list[float]) -> None:
        assert svg.Scale(low, high, 0, 1).ticks() == pytest.approx(ticks)

    def test_logarithmic_ticks(self) -> None:
        assert svg.Scale(0.1, 0.5, 0, 1, log=True).ticks() == pytest.approx([0.1, 0.2, 0.5])
        assert svg.Scale(1e-4, 1, 0, 1, log=True).ticks() == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1])

    def test_counts_have_whole_ticks(self) -> None:
        assert svg.Scale(0, 2, 0, 1, whole=True).ticks() == [0, 1, 2]

    def test_every_sample_is_in_the_histogram(self) -> None:
        drawn = str(charts.histogram([0.1] * 90 + [0.2] * 9 + [50.0], "all"))
        assert sum(int(count) for count in re.findall(r": (\d+) sample", drawn)) == 100
        assert "and more: 1 sample" in drawn

    def test_a_histogram_of_nothing_but_zeros(self) -> None:
        assert "0 to 0.0625: 16 samples" not in charts.histogram([], "none")
        assert ": 16 samples" in charts.histogram([0.0] * 16, "zeros")

    def test_the_choice_is_marked_on_the_curve(self) -> None:
        points = [Tradeoff(100 - 10 * k, 1, 0.01 * k, k == 4) for k in range(8)]
        drawn = str(charts.tradeoff(points, 100))
        assert drawn.count("chosen: ") == 2
        assert "60.0% of the MACs: expected error 20.0%" in drawn
        assert charts.tradeoff(points[:1], 100) == ""
        assert charts.tradeoff(points, 0) == ""

    def test_the_chosen_width_is_marked(self) -> None:
        curve = ErrorCurve((2, 4, 8), (0.5, 0.25, 0.0))
        assert str(charts.spark(curve, 4)).count("<circle") == 1
        assert "4: 0.25" in charts.spark(curve, 4)
        assert charts.spark(None, 4) == ""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a small run of the command wrote: net_pruned.onnx, run.json, run.html."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 8, 8, 3)).astype(np.uint8)
    np.savez(folder / "data.npz", images=pixels, labels=np.arange(48) % 5)
    model = small_models.residual()
    model.graph.node[0].name = "<script>alert(1)</script>"
    onnx.save(model, folder / "net.onnx")
    (folder / "classes.txt").write_text("zero\none\n<b>two</b>\nthree\nfour\n", encoding="utf-8")
    outcome = CliRunner().invoke(
        cli.app,
        ["prune", str(folder / "net.onnx"), "--data", str(folder / "data.npz"), "--mean", "0.5", "--std", "0.25",
         "--target", "macs=60%", "--scope", "all", "--json", str(folder / "run.json"), "--report", str(folder / "run.html"),
         "--classes", str(folder / "classes.txt"), "-q"],
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    return folder


class TestRealRun:
    def test_every_section_has_something_to_show(self, run: Path) -> None:
        shown = Page((run / "run.html").read_text(encoding="utf-8"))
        assert [a["id"] for a in shown.all("section")] == SECTIONS
        assert shown.all("p", **{"class": "empty"}) == []
        kinds = [a.get("class") for a in shown.all("svg")]
        assert kinds.count("chart") == 3
        assert "profile" in kinds
        assert "spark" in kinds
        assert len(shown.all("img")) == 6
        for said in (
            "<script>alert(1)</script>",
            "<b>two</b>",
            "largest error",
            "at random",
            "labelled",
            "--target macs=60%",
        ):
            assert said in shown.text, said

    def test_the_json_makes_the_same_page(self, run: Path) -> None:
        outcome = CliRunner().invoke(cli.app, ["report", str(run / "run.json"), str(run / "again.html")])
        assert outcome.exit_code == 0, outcome.output
        assert (run / "again.html").read_text(encoding="utf-8") == (run / "run.html").read_text(encoding="utf-8")

    def test_the_report_comes_back_as_it_was(self, run: Path) -> None:
        found = restore.load_report(run / "run.json")
        reports.write_json(found, run / "copy.json")
        assert (run / "copy.json").read_bytes() == (run / "run.json").read_bytes()

    def test_the_page_lies_beside_the_json_by_default(self, run: Path) -> None:
        (run / "other.json").write_bytes((run / "run.json").read_bytes())
        assert CliRunner().invoke(cli.app, ["report", str(run / "other.json")]).exit_code == 0
        assert (run / "other.html").is_file()

    def test_without_a_report_no_picture_is_kept(self, run: Path) -> None:
        assert json.loads((run / "run.json").read_text(encoding="utf-8"))["examples"]["samples"]


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    target = tmp_path / "page.html"
    target.write_text("old", encoding="utf-8")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left on device"):
        page.write(REPORT, target)
    assert target.read_text(encoding="utf-8") == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["page.html"]


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[tuple[ModuleType, Any]]:
    screenshots = tool()
    if screenshots.browser() is None or importlib.util.find_spec("playwright") is None:
        pytest.skip(NO_BROWSER)
    with screenshots.launched() as active:
        yield screenshots, active


@pytest.fixture
def html(name: str, tmp_path: Path) -> Path:
    target = tmp_path / "page.html"
    page.write(REPORTS[name], target)
    return target


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_no_complaint_and_nothing_sticks_out(
    browser: tuple[ModuleType, Any], html: Path, width: int, scheme: str
) -> None:
    screenshots, active = browser
    with screenshots.opened(active, html, width, scheme) as shown:
        assert shown.complaints == []
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        beyond = shown.evaluate(
            """width => Array.from(document.querySelectorAll("main *, header *"))
                 .filter(e => !e.closest("nav, svg") && e.getClientRects().length)
                 .filter(e => e.getBoundingClientRect().right > width + 1)
                 .map(e => e.outerHTML.slice(0, 100))""",
            width,
        )
        assert beyond == []
        dark = shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 21, 26)"
        assert dark == (scheme == "dark")


def visible(shown: Any) -> list[str]:
    """Names of the groups that can be seen, from top to bottom."""
    rows = shown.locator("table.groups tbody tr:visible summary .name")
    return [text.split("/")[0] for text in rows.all_text_contents()]


@pytest.fixture
def many(browser: tuple[ModuleType, Any], tmp_path: Path) -> Iterator[Any]:
    screenshots, active = browser
    page.write(MANY, tmp_path / "many.html")
    with screenshots.opened(active, tmp_path / "many.html", 1280) as shown:
        yield shown


def test_groups_are_sorted(many: Any) -> None:
    assert visible(many) == [str(k) for k in range(30)]
    many.select_option("#sort", "macs:-1")
    assert visible(many)[:3] == ["499", "498", "497"]
    many.click("th[data-sort=sensitivity] button")
    many.click("th[data-sort=sensitivity] button")
    assert visible(many)[:3] == ["0", "1", "2"]
    assert many.get_attribute("th[data-sort=sensitivity]", "aria-sort") == "ascending"
    many.select_option("#sort", "error:-1")
    worst = [int(name) for name in visible(many)]
    assert [name % 17 for name in worst] == sorted((name % 17 for name in worst), reverse=True)
    assert all(name % 3 for name in worst)  # groups without an error come last
    many.click("th[data-sort=name] button")
    assert visible(many)[:3] == ["0", "1", "10"]


def test_groups_are_filtered(many: Any) -> None:
    many.fill("#filter", "49/LONG")
    assert visible(many) == ["49", "149", "249", "349", "449"]
    assert many.text_content("#count") == "5 of 500"
    many.fill("#filter", "<none>")
    assert visible(many) == []
    assert many.is_visible("#none")
    many.fill("#filter", "")
    many.click("#all")
    assert len(visible(many)) == 500
    many.click("#all")
    assert len(visible(many)) == 30


def test_what_the_pointer_is_on_is_told(many: Any) -> None:
    assert not many.is_visible("#tip")
    many.hover("table.groups tbody tr:nth-child(2) .channels .meter")
    assert many.text_content("#tip") == "64 → 32 channels, 50% kept"
    many.hover("h1")
    assert not many.is_visible("#tip")


def test_the_switch_beats_the_system(many: Any) -> None:
    seen = []
    for _ in range(4):
        colour = many.evaluate("getComputedStyle(document.body).backgroundColor")
        seen.append((many.text_content("#theme"), colour))
        many.click("#theme")
    light, dark = "rgb(244, 246, 248)", "rgb(17, 21, 26)"
    assert seen == [("Theme: auto", light), ("Theme: light", light), ("Theme: dark", dark), ("Theme: auto", light)]


def test_no_script_of_a_name_runs(browser: tuple[ModuleType, Any], tmp_path: Path) -> None:
    screenshots, active = browser
    page.write(HOSTILE, tmp_path / "hostile.html")
    with screenshots.opened(active, tmp_path / "hostile.html", 1280) as shown:
        dialogs: list[str] = []
        shown.on("dialog", lambda dialog: dialogs.append(dialog.message))
        shown.hover("table.groups tbody tr:nth-child(1) .channels .meter")
        shown.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        shown.click("#theme")
        assert dialogs == []
        assert shown.complaints == []
        assert shown.text_content("h1") == "script>"


def test_the_policy_stops_scripts_that_are_not_the_pages_own(browser: tuple[ModuleType, Any], tmp_path: Path) -> None:
    screenshots, active = browser
    text = page.render(REPORT).replace("</main>", "<script>document.title = 'taken'</script></main>")
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    with screenshots.opened(active, tmp_path / "page.html", 1280) as shown:
        assert shown.title() != "taken"
        assert any("Content Security Policy" in complaint for complaint in shown.complaints)


def test_it_can_be_printed(browser: tuple[ModuleType, Any], tmp_path: Path) -> None:
    screenshots, active = browser
    page.write(FULL, tmp_path / "page.html")
    with screenshots.opened(active, tmp_path / "page.html", 1280, "dark") as shown:
        assert shown.pdf(format="A4").startswith(b"%PDF")
        shown.emulate_media(media="print")
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not shown.is_visible("#theme")
