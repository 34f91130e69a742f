"""The report page in a real browser, where there is one: what a model wrote
never runs, pages open fast, keys and links lead where they say."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dynscaling_jax as ds
from dynscaling_jax.analysis.graded import RecordedRun, grade_run
from dynscaling_jax.analysis.page import page
from dynscaling_jax.analysis.report import report
from dynscaling_jax.experiments import report as reporting
from dynscaling_jax.tasks import Problem, Task
from dynscaling_jax.types import Message, Query, Sample
from tests.arriving import Model, reply

BROWSER = next(
    filter(
        None,
        map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
    ),
    None,
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="there is no Chromium")

# Chromium reads commands from descriptor 3 and answers on 4.
START = """
import os, sys
os.dup2(int(sys.argv[1]), 3), os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """A headless Chromium, told what to do over its pipe."""

    def __init__(self, home: Path):
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # so that 3 and 4 are free to be written over
        fds = [os.dup(fd) for fd in (theirs_in, theirs_out)]
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", START, *map(str, fds), BROWSER),
                *("--headless=new", "--no-sandbox", "--disable-gpu"),
                *("--no-first-run", "--disable-dev-shm-usage"),
                *("--remote-debugging-pipe", f"--user-data-dir={home}"),
            ],
            pass_fds=fds,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (theirs_in, theirs_out, *fds):
            os.close(fd)
        self._rest, self._number, self._session = b"", 0, None
        self.logged: list[dict] = []
        made = self.send("Target.createTarget", url="about:blank")
        self._session = self.send(
            "Target.attachToTarget", targetId=made["targetId"], flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params):
        self._number += 1
        command = {"id": self._number, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._out, json.dumps(command).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.logged.append(message)

    def _message(self) -> dict:
        while b"\0" not in self._rest:
            part = os.read(self._in, 1 << 20)
            assert part, "the browser ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, file: Path) -> float:
        """Seconds until the script of the page has ended and is painted."""
        self.send("Page.navigate", url="about:blank")
        begin = time.monotonic()
        self.logged.clear()
        self.send("Page.navigate", url=file.as_uri())
        while not self.run("document.documentElement?.dataset.ready"):
            time.sleep(0.01)
        self.run(
            "new Promise((done) => requestAnimationFrame("
            "() => requestAnimationFrame(done)))"
        )
        return time.monotonic() - begin

    def run(self, script: str):
        found = self.send(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str):
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, **text)

    def complaints(self) -> list[str]:
        """Errors, refusals of the policy, and requests beyond the file."""
        found = []
        for message in self.logged:
            method, of = message["method"], message["params"]
            if method in ("Runtime.exceptionThrown", "Log.entryAdded"):
                found.append(json.dumps(of))
            if method == "Network.requestWillBeSent":
                url = of["request"]["url"]
                if not url.startswith("file:") or not url.endswith(".html"):
                    found.append(url)
        return found

    def close(self):
        self.send("Browser.close")
        self._process.wait(timeout=30)
        os.close(self._in), os.close(self._out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


def write(path, *args, **changes):
    """A page of made-up runs."""
    path.write_text(page(made_up(*args, **changes)), encoding="utf-8")
    return path


def made_up(queries, samples, text, answer=str, names=("one",)):
    """A report of runs of two rounds, the second all chains.

    Args:
        text, answer: of the number of a sample -> what it says.
    """
    ids = [f"q{q}" for q in range(queries)]
    half = samples // 2
    drawn = [
        Sample(
            query_id=id,
            index=n,
            round=int(n >= half),
            parents=(n - half, 0) if n > half else (),
            text=text(n),
            answer=answer(n),
            finish_reason="stop",
            prompt_tokens=10,
            cached_tokens=4,
            new_tokens=5,
            flops=2.0,
        )
        for id in ids
        for n in range(samples)
    ]
    rounds = [
        {
            "grants": dict.fromkeys(ids, half),
            "uncertainty": dict.fromkeys(ids, 1.0 - r / 2),
        }
        for r in range(2)
    ]
    summary = {
        "task": text(0),
        "kind": "text",
        "model": text(1),
        "accuracy": 0.5,
        "samples": len(drawn),
    }
    runs = [
        RecordedRun(
            name,
            summary,
            dict.fromkeys(ids, answer(0)),
            {id: f"The question {id}? {text(0)}" for id in ids},
            {
                id: {"answer": answer(0), "right": (q + r) % 3 > 0}
                for q, id in enumerate(ids)
            },
            drawn,
            rounds,
        )
        for r, name in enumerate(names)
    ]
    compare = lambda a, b, kind: "equal" if a == b else "different"
    return report([grade_run(run, compare) for run in runs])


HOSTILE = (
    "</script><script>window.hit = 'script'</script>",
    "<img src=x onerror=\"window.hit = 'image'\">",
    "<!--<script>window.hit = 'comment'",
    "<svg onload=\"window.hit = 'svg'\"></svg>",
    "{{script}} ${window.hit = 'template'} javascript:window.hit='link'",
    "<style>*{display:none}</style><base href=http://127.0.0.1/>",
)


def test_what_a_model_wrote_never_runs(browser, tmp_path):
    hostile = lambda n: HOSTILE[n % len(HOSTILE)]
    file = tmp_path / "hostile.html"
    write(file, 3, 12, hostile, hostile, names=HOSTILE[:3])
    browser.open(file)
    for key in "jjkk":
        browser.press(key)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = 1)")
    time.sleep(0.2)
    assert browser.run("window.hit") is None
    assert browser.complaints() == []
    made = "img, base, iframe, object, embed, a[href^=javascript]"
    assert browser.run(f"document.querySelectorAll('{made}').length") == 0
    assert browser.run("document.scripts.length") == 1 + 1 + 3 * 3
    # all of it is shown, as text
    text = browser.run("document.querySelector('.detail').textContent")
    assert all(line in text for line in HOSTILE)


def test_the_policy_stops_what_would_run_all_the_same(browser, tmp_path):
    browser.open(write(tmp_path / "page.html", 2, 4, str))
    browser.run(
        """
        const script = document.createElement("script");
        script.textContent = "window.hit = 1";
        document.body.append(script);
        const image = document.createElement("img");
        image.setAttribute("onerror", "window.hit = 2");
        image.src = "http://127.0.0.1:9/x";
        document.body.append(image);
        new Promise((done) => setTimeout(done, 300));
        """
    )
    assert browser.run("window.hit") is None
    assert len(browser.complaints()) > 0  # refused, and said so


def test_many_samples_open_fast(browser, tmp_path):
    """500 questions with 64 samples of 500 characters: 19 MB."""
    words = "so that the answer is so and so. " * 15
    file = write(
        tmp_path / "large.html",
        500,
        64,
        lambda n: f"{n}: {words}",
        lambda n: str(n % 5),
    )
    assert file.stat().st_size > 15e6
    seconds = min(browser.open(file) for _ in range(3))
    assert seconds < 2
    # the samples of one question alone are there, of the list a part
    assert browser.run("document.querySelectorAll('.sample').length") == 64
    assert browser.run("document.querySelectorAll('.item').length") == 201


@pytest.fixture
def opened(browser, tmp_path):
    file = write(
        tmp_path / "page.html",
        250,
        8,
        lambda n: f"number {n}",
        lambda n: str(n % 2),
        names=("first", "second"),
    )
    browser.open(file)
    return browser


def chosen(browser):
    return browser.run("document.querySelector('.detail h3').textContent")


def found(browser):
    return browser.run("document.querySelector('[role=status]').textContent")


def click(browser, selector, text):
    assert browser.run(
        f"""
        const wanted = [...document.querySelectorAll('{selector}')]
            .find((one) => one.textContent.split(' ')[0] === '{text}');
        wanted?.click();
        Boolean(wanted)
        """.replace("const wanted", "var wanted")
    )


def test_what_a_reader_wants_first_stands_first(opened):
    """The page began with thresholds that nearly every run crossed."""
    order = "[...document.querySelectorAll('main section')].map((s) => s.id)"
    assert opened.run(order)[:3] == ["runs", "curves", "differences"]
    rows = opened.run("document.querySelector('#runs tbody').innerText")
    assert rows.split()[:2] == ["first", "50.0%"] and "second" in rows
    # q0, q3, ... are wrong in one run, q2, q5, ... in the other
    said = "document.querySelector('#differences p').textContent"
    assert opened.run(said).startswith(
        "All runs are right on 83 of 250 questions and wrong on 0; they "
        "differ on 167"
    )
    opened.run("document.querySelectorAll('#differences .mark')[1].click()")
    assert chosen(opened) == "q2"


@pytest.mark.parametrize("losses", [[], ["5.0 points behind"]])
def test_a_threshold_warns_where_something_was_lost(browser, tmp_path, losses):
    """Nearly every run crosses one, the best of them too."""
    made = made_up(3, 4, str)
    figure = {"name": "divergent", "measure": "gap", "note": "", "above": True}
    figure |= {"value": 0.9, "threshold": 0.5, "crossed": True, "loss": False}
    made["runs"][0] |= {"losses": losses, "diagnostics": [figure]}
    file = tmp_path / "page.html"
    file.write_text(page(made), encoding="utf-8")
    browser.open(file)
    within = "document.querySelector('#diagnostics"
    warnings = browser.run(f"{within}').querySelectorAll('.warning').length")
    assert warnings == len(losses)
    text = browser.run(f"{within} details').textContent")
    assert ("(beyond it)" in text) != bool(losses)
    text = browser.run(f"{within}').textContent")
    assert ("What may explain it" in text) == bool(losses)
    assert ("Nothing was lost" in text) != bool(losses)


def test_keys_go_through_questions_and_samples(opened):
    opened.press("j"), opened.press("j"), opened.press("k")
    assert chosen(opened) == "q1"
    opened.press("ArrowDown")  # the page scrolls, unless the list has focus
    assert chosen(opened) == "q1"
    opened.run("document.querySelector('.list').focus()")
    opened.press("ArrowDown")
    assert chosen(opened) == "q2"
    opened.press("ArrowRight"), opened.press("ArrowRight")
    on = "document.querySelector('.sample.on .number').textContent"
    assert opened.run(on) == "#1"
    for _ in range(210):  # past what the list shows at first
        opened.press("j")
    assert chosen(opened) == "q212"


def test_search_and_filters(opened):
    opened.press("/")
    for key in "q24j":
        opened.press(key)
    time.sleep(0.4)
    assert found(opened) == "0 of 250 questions"
    opened.run("document.activeElement.value = 'Q24'")
    opened.run("document.activeElement.dispatchEvent(new Event('input'))")
    time.sleep(0.4)
    assert found(opened) == "11 of 250 questions"  # q24, q240 to q249
    click(opened, ".tools button", "wrong")  # every third
    assert found(opened) == "5 of 250 questions"
    opened.press("Escape")
    click(opened, ".tools button", "runs")  # runs differ
    assert opened.run("document.querySelectorAll('.item').length") == 8


def test_a_parent_is_a_click_away(opened):
    click(opened, ".sample .link", "#1")
    on = "document.querySelector('.sample.on .number').textContent"
    assert opened.run(on) == "#1"
    assert opened.run("document.activeElement.className").startswith("card")


def test_another_section_leads_to_its_question(opened):
    opened.run("document.querySelectorAll('details').forEach(d => d.open = 1)")
    click(opened, "#differences button", "q5")
    assert chosen(opened) == "q5"
    pressed = ".detail [aria-pressed=true]"
    assert (
        opened.run(f"document.querySelector('{pressed}').textContent")
        == "second"
    )


def test_keys_read_the_allocation(opened):
    """A pointer alone could."""
    opened.run("document.querySelector('#allocation canvas').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown"):
        opened.press(key)
    told = "document.querySelector('#allocation .cell').textContent"
    where, _, what = opened.run(told).partition(": ")
    assert where == "q2, round 1"
    assert what == "4 samples granted at uncertainty 0.50; 8 in all"
    opened.press("Enter")
    assert chosen(opened) == "q2"


def test_dark_where_the_reader_wants_it(browser, tmp_path):
    """On a page that is open, its canvases too."""
    browser.open(write(tmp_path / "page.html", 3, 4, str))
    luminance = """
        getComputedStyle(document.body)[NAME].match(/[0-9]+/g)
            .reduce((sum, part) => sum + Number(part), 0) / 765
    """
    canvas = """
        document.querySelector('#allocation canvas').getContext('2d')
            .getImageData(1, 1, 1, 1).data.slice(0, 3).join()
    """
    seen = {}
    try:
        for scheme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            browser.send("Emulation.setEmulatedMedia", features=[feature])
            browser.run("new Promise((done) => setTimeout(done, 200))")
            seen[scheme] = [
                browser.run(canvas),
                *(
                    browser.run(luminance.replace("NAME", f"'{name}'"))
                    for name in ("backgroundColor", "color")
                ),
            ]
    finally:
        browser.send("Emulation.setEmulatedMedia", features=[])
    (cell, ground, ink), (dark_cell, dark_ground, dark_ink) = seen.values()
    assert ground > 0.9 and ink < 0.2
    assert dark_ground < 0.2 and dark_ink > 0.8
    assert cell != dark_cell


def test_a_finger_reads_before_it_opens(opened):
    """On a phone the first tap led away from what it was to read."""
    touch = "{ pointerType: 'touch', bubbles: true }"
    tap = f"""
        var at = document.querySelector('#allocation canvas');
        var box = at.getBoundingClientRect();
        at.dispatchEvent(new PointerEvent('pointerdown', {touch}));
        at.dispatchEvent(new MouseEvent('click', {{
            clientX: box.left + box.width * 5.5 / 250, clientY: box.top + 1,
        }}))
    """
    opened.run(tap)
    told = "document.querySelector('#allocation .cell').textContent"
    assert opened.run(told).startswith("q5, round 0: ")
    assert chosen(opened) == "q0"
    opened.run(tap)
    assert chosen(opened) == "q5"


@pytest.mark.parametrize("kind", ["rounds", "few", "many"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(
    browser, tmp_path, width, kind, request
):
    if kind == "rounds":
        long = lambda n: "x" * 300
        file = tmp_path / "page.html"
        write(file, 3, 20, long, long, names=("y" * 80,))
    else:
        file = request.getfixturevalue(kind)
    browser.send(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=800,
        deviceScaleFactor=1,
        mobile=width < 500,
    )
    try:
        browser.open(file)
        wide = browser.run("document.documentElement.scrollWidth")
    finally:
        browser.send("Emulation.clearDeviceMetricsOverride")
    assert wide <= width


def run_in_time(workdir, ids, samples):
    """A run without rounds, of a stub; returns its page."""

    def answer(request):
        drawn = random.Random(f"{request.query.id}/{request.index}")
        text = f"So the answer is {drawn.choice([7, 7, 8, 9])}."
        return reply(request, None, drawn.randint(1, 40), text=text)

    method = ds.Method(
        ds.strategies.integrated(explore=2),
        ds.policies.uniform(),
        ds.votes.majority(),
        ds.Schedule(first_round=1, concurrent=8),
        "made-up",
        ds.cancelling.posterior(0.8),
    )
    queries = [Query(id, (Message("user", f"{id}?"),)) for id in ids]
    problems = tuple(Problem(query, "7") for query in queries)
    task = Task("made-up", "number", problems)
    budget = ds.Budget(samples=samples)
    ds.run(task, Model(8, 0, answer).sampler, method, budget, workdir)
    return workdir / "report.html"


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Bars; the first question has a hostile name."""
    ids = [HOSTILE[1], *(f"q{n}" for n in range(1, 12))]
    return run_in_time(tmp_path_factory.mktemp("few"), ids, 60)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """More questions than bars have room for."""
    ids = [f"q{n}" for n in range(130)]
    return run_in_time(tmp_path_factory.mktemp("many"), ids, 200)


CAPTION = "document.querySelector('#allocation .cell').textContent"
SAMPLES_ON = "document.querySelector('.sample.on .number').textContent"


def test_bars_over_time(browser, few):
    browser.open(few)
    title = browser.run("document.querySelector('#allocation h2').textContent")
    assert title == "Allocation over time"
    boxes = "document.querySelectorAll('.bars .bar')"
    assert browser.run(f"{boxes}.length") == 60
    kinds = browser.run(f"[...{boxes}].map((box) => box.classList.value)")
    assert {"bar end", "bar chain end"} < {*kinds}
    assert any("cancel" in kind for kind in kinds)
    labels = browser.run("document.querySelector('#curves').textContent")
    assert "decode steps" in labels
    assert "in the order in which they ended" in labels
    text = browser.run("document.querySelector('#allocation').textContent")
    assert "At most 8 samples were under way at once" in text
    assert browser.run("window.hit") is None and browser.complaints() == []


def test_keys_and_clicks_lead_from_a_bar_to_its_sample(browser, few):
    browser.open(few)
    browser.run("document.querySelector('.bars').focus()")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft"):
        browser.press(key)
    told = browser.run(CAPTION)
    id, number = told.partition(":")[0].split(", ")[:2]
    assert number.split()[:2] == ["sample", "1"] and "granted at" in told
    browser.press("Enter")
    assert chosen(browser) == id and browser.run(SAMPLES_ON) == "#1"
    click_on = "dispatchEvent(new MouseEvent('click', { bubbles: true }))"
    browser.run(f"document.querySelector('.bars .cancel').{click_on}")
    told = browser.run(CAPTION)
    assert "cancelled at" in told and chosen(browser) == told.split(", ")[0]
    card = browser.run("document.querySelector('.sample.on').textContent")
    assert "granted at" in card and "cancelled at" in card
    rows = browser.run("document.querySelector('.detail details').textContent")
    assert "in decode steps" in rows and "cancelled" in rows
    vote = browser.run("document.querySelector('.detail p').textContent")
    assert "more cancelled" in vote


def test_many_questions_are_cells_over_time(browser, many):
    browser.open(many)
    assert browser.run("document.querySelector('.bars')") is None
    canvases = "document.querySelectorAll('#allocation canvas')"
    assert browser.run(f"{canvases}.length") == 2
    browser.run(f"{canvases}[0].focus()")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        browser.press(key)
    told = browser.run(CAPTION)
    assert "samples granted" in told and "cancelled" in told
    browser.press("Enter")
    assert chosen(browser) == told.split(", ")[0]
    height = browser.run(f"{canvases}[0].getBoundingClientRect().height")
    assert 130 <= height <= 640


def test_runs_with_and_without_rounds_on_a_page(browser, few, tmp_path):
    """A run in rounds has no curve over steps, and its own allocation."""
    recorded = reporting.read_run(few.parent, "async")
    ids = [*recorded.references]
    row = {
        "grants": dict.fromkeys(ids, 2),
        "uncertainty": dict.fromkeys(ids, 1),
    }
    kept = [s for s in recorded.samples if s.finish_reason == "stop"]
    in_rounds = recorded._replace(
        name="rounds", samples=kept, rounds=[row, row], events=()
    )
    compare = lambda a, b, kind: "equal" if a == b else "different"
    graded = [grade_run(run, compare) for run in (in_rounds, recorded)]
    file = tmp_path / "page.html"
    file.write_text(page(report(graded)), encoding="utf-8")
    browser.open(file)
    title = browser.run("document.querySelector('#allocation h2').textContent")
    assert title == "Allocation over rounds and time"
    curves = "document.querySelectorAll('#curves svg')"
    lines = browser.run(
        f"[...{curves}].map((s) => s.querySelectorAll('g').length)"
    )
    assert lines == [2, 2, 1, 2]
    for name in ("rounds", "async"):
        click(browser, ".detail button", name)
        asked = browser.run("document.querySelector('.detail').textContent")
        assert ("granted at" in asked) == (name == "async")
        assert ("Its rounds" in asked) == (name == "rounds")
    assert browser.complaints() == []
