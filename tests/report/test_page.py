import base64
import io
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from rdmldg_ray.cli import app
from rdmldg_ray.datasets.builtin.questions import write_iconbed_vqa
from rdmldg_ray.report.gallery import make_gallery
from rdmldg_ray.runs.results import confusion, read_run
from rdmldg_ray.storage import delete_folder, join
from tests.helpers.run_files import HOSTILE, write_run

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def runs(store, tmp_path_factory):
    """A storage root with two runs that differ in one setting."""
    root = str(tmp_path_factory.mktemp("runs"))
    shutil.copytree(f"{store}/datasets", f"{root}/datasets")
    write_run(root)
    write_run(root, "other", lora={"rank": 4})
    return root


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "r.html"
    result = report("small", "other", "--storage", runs, "--out", str(out), "--max-images", "20")
    assert result.exit_code == 0, result.output
    return out


def report(*arguments):
    return CliRunner().invoke(app, ["report", *arguments], env={"COLUMNS": "200"})


class Parsed(HTMLParser):
    """The page's elements and texts, as a browser would see them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def test_what_a_model_wrote_is_text(page):
    text = page.read_text()
    parsed = Parsed(text)
    assert HOSTILE not in text
    assert HOSTILE in parsed.text
    assert parsed.tags.count("script") == 1, "our own alone"
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]


def test_nothing_is_fetched(page):
    parsed = Parsed(page.read_text())
    links = [value for name, value in parsed.attributes if name in ("src", "href", "xlink:href")]
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert not {"link", "iframe", "object"} & set(parsed.tags)


def test_runs_stand_side_by_side_with_what_differs(page):
    texts = Parsed(page.read_text()).text
    assert "lora.rank" in texts and "lora.alpha" not in texts
    start = texts.index("Side by side: target (in), %")
    cells = [text for text in texts[start:] if text.strip()]
    assert cells[1:10] == [
        "stage",
        "pathway",
        "small",
        "other",
        "zero-shot",
        "direct",
        "66.7",
        "66.7",
        "zero-shot",
    ]
    assert {"Accuracy by domain, pathway and round", "Confusion matrices", "Training"} <= set(texts)


def test_cost_is_told_when_prices_are_given(runs, page, tmp_path):
    assert "Time and versions" in page.read_text() and ">$<" not in page.read_text()
    out = tmp_path / "r.html"
    result = report("small", "--storage", runs, "--out", str(out), "--prices", "360", "0")
    assert result.exit_code == 0, result.output
    cells = [text.strip() for text in Parsed(out.read_text()).text if text.strip()]
    # One worker, twenty seconds, a dollar for every ten.
    start = cells.index("flat/mtct", cells.index("By stage"))
    assert cells[start : start + 6] == ["flat/mtct", "20", "32.3", "0.01", "0.1", "2.00"]


def test_wrong_answers_come_first_and_the_limit_holds(runs):
    cards = make_gallery(read_run(runs, "small"), 20)
    assert len(cards) <= 20
    assert cards[0].verdict == "answer wrong" and cards[0].own == HOSTILE
    assert {card.verdict for card in cards} == {
        "answer wrong",
        "answer right",
        "chain rejected",
        "chain accepted",
    }
    wrong = [card for card in cards if card.verdict == "answer wrong"]
    assert len({(card.domain, card.label) for card in wrong}) == len(wrong), "spread over domains and classes"
    rejected = next(card for card in cards if card.verdict == "chain rejected")
    assert rejected.note == "draw 1, wrong class" and rejected.domain != rejected.held_out
    assert all("<CONCLUSION>" in card.teacher for card in cards)
    image = Image.open(io.BytesIO(base64.b64decode(cards[0].image.partition(",")[2])))
    assert max(image.size) <= 320
    assert make_gallery(read_run(runs, "small"), 0) == []


def test_a_run_that_has_hardly_begun_has_a_report(runs, tmp_path):
    root = str(tmp_path)
    shutil.copytree(f"{runs}/datasets", f"{root}/datasets")
    config = write_run(root, "begun")
    delete_folder(join(root, "runs/begun/flat"))
    out = tmp_path / "r.html"
    assert report(config.name, "--storage", root, "--out", str(out)).exit_code == 0
    assert "No evaluation is complete yet." in out.read_text()


def test_a_run_that_is_not_there_is_named(runs, tmp_path):
    result = report("none", "--storage", runs, "--out", str(tmp_path / "r.html"))
    assert result.exit_code == 2
    assert (
        result.stderr.strip() == f"error: {runs}/runs/none: no run here; correct the run's name, or --storage"
    )


def test_confusion_counts_answers_that_name_no_class(runs):
    import pyarrow as pa

    table = pa.table({"label": ["a", "a", "b"], "prediction": ["b", None, "b"]})
    assert confusion(table, ["a", "b"]) == [[0, 1, 1], [0, 1, 0]]


def test_in_a_browser_it_loads_without_an_error_and_filters(page):
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright; pip install playwright")
    with sync_api.sync_playwright() as playwright:
        # Set RDMLDG_CHROMIUM to a browser that playwright did not install.
        path = os.environ.get("RDMLDG_CHROMIUM", playwright.chromium.executable_path)
        if not Path(path).is_file():
            pytest.skip("no Chromium; playwright install chromium")
        browser = playwright.chromium.launch(
            executable_path=path, args=["--headless=shell", "--no-sandbox", "--disable-gpu"]
        )
        try:
            for scheme, width in (("light", 1200), ("dark", 390)):
                view = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
                problems = []
                view.on("console", lambda message, seen=problems: seen.append(message.text))
                view.on("pageerror", lambda error, seen=problems: seen.append(str(error)))
                view.goto(page.as_uri())
                gallery = view.locator(".gallery").first
                all_cards = gallery.locator(".card").count()
                gallery.locator("[data-filter=verdict]").select_option("chain rejected")
                shown = gallery.locator(".card:visible").count()
                assert 0 < shown < all_cards
                assert gallery.locator("output").inner_text() == f"{shown} of {all_cards}"
                gallery.locator("[data-filter=verdict]").select_option("")
                assert gallery.locator(".card:visible").count() == all_cards
                assert view.title() == "small, other - RD-MLDG"
                assert view.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scrolling"
                # As wide as A4 with its margins.
                view.emulate_media(media="print")
                view.set_viewport_size({"width": 703, "height": 1000})
                assert view.evaluate("document.documentElement.scrollWidth") <= 703
                drawn = "[...document.images].every(image => image.complete && image.naturalWidth)"
                assert view.evaluate(drawn), "what is not on the screen is printed too"
                assert problems == []
        finally:
            browser.close()


def test_a_run_on_questions_tells_accuracy_by_question_and_shows_them_in_the_gallery(tmp_path):
    root, out = str(tmp_path), tmp_path / "r.html"
    write_iconbed_vqa(root)
    write_run(root, dataset="iconbed-vqa")
    assert report("small", "--storage", root, "--out", str(out)).exit_code == 0
    texts = Parsed(out.read_text()).text
    assert "Accuracy by question" in texts and "Confusion matrices" not in texts
    assert "Is this something to eat?" in texts
    assert "Is this something to eat? yes, no" in texts
