"""What the scripts of the two pages show, in a real browser under the pages' own policy."""

import json
import re
import shutil
import subprocess
from html import unescape

import httpx
import pytest
from starlette.responses import HTMLResponse
from starlette.routing import Route

from clickbert import Connection, Ranker
from clickbert.http.app import make_app
from clickbert.http.settings import Settings
from tests.client.http.running import on_a_port

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed, so the pages' scripts are not run (Debian: chromium)"
)
QUIET = ["quic", "background-networking", "component-update", "sync"]
TEXTS = ["a bank", "a cafe & <b>bar</b>", "a cafe"]


def opened(address, profile):
    """The page's elements, when its scripts wait for nothing any more."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
    command += [*(f"--disable-{each}" for each in QUIET), "--virtual-time-budget=10000", "--dump-dom", address]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def texts_of(page, kind):
    """What each element of this class begins with."""
    return [unescape(text) for text in re.findall(rf'<span class="{kind}">([^<]*)<', page)]


def driven(app):
    """Add a path to the app: its page, and what a user types and sends."""

    async def page(_):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
            answer = await http.get("/")
        typed = {"query": "coffee", "candidates": "\n".join(["", *TEXTS, "  "])}
        fill = "".join(f"form.{name}.value = {json.dumps(text)};" for name, text in typed.items())
        fill = fill.replace("</", r"<\/")
        policy = {"content-security-policy": answer.headers["content-security-policy"]}
        return HTMLResponse(f"{answer.text}<script>{fill} form.requestSubmit();</script>", headers=policy)

    app.router.routes.append(Route("/driven", page))
    return app


def test_the_form_shows_the_ranking_the_scores_and_the_time(url, tmp_path):
    with Ranker(url) as ranker:
        expected = ranker.rank("coffee", TEXTS)
    with on_a_port(driven(make_app(Settings(Connection(url))))) as address:
        page = opened(f"{address}/driven", tmp_path)
    assert texts_of(page, "place") == ["1", "2", "3"]
    assert texts_of(page, "text") == [each.text for each in expected]
    assert texts_of(page, "score") == [f"{each.score:.4f}" for each in expected]
    assert re.search(r'<p id="status"[^>]*>3 candidates in [0-9.]+ ms</p>', page)


def test_the_form_shows_why_it_was_refused(url, tmp_path):
    with on_a_port(driven(make_app(Settings(Connection(url), max_documents=2)))) as address:
        page = opened(f"{address}/driven", tmp_path)
    assert not texts_of(page, "text")
    assert re.search(r'<p id="status"[^>]* class="bad">413: texts has 3 entries', page)


def test_the_description_shows_every_path_and_form(url, tmp_path):
    with on_a_port(make_app(Settings(Connection(url)))) as address:
        api = httpx.get(f"{address}/openapi.json").json()
        page = opened(f"{address}/docs", tmp_path)
    shown = re.findall(r'<span class="method">(\w+)</span><code[^>]*>([^<]+)</code>', page)
    assert shown == [(method.upper(), path) for path, methods in api["paths"].items() for method in methods]
    assert set(api["components"]["schemas"]) <= set(re.findall(r'<details[^>]* id="(\w+)">', page))
