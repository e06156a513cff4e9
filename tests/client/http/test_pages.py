"""The two pages work offline, and hold nothing of a caller's."""

import re

import pytest

PAGES = ("/", "/docs")


@pytest.mark.parametrize("path", PAGES)
def test_a_page_loads_nothing_from_elsewhere(http, path):
    page = http.get(path)
    assert "://" not in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "prefers-color-scheme: dark" in page.text


@pytest.mark.parametrize("path", PAGES)
def test_a_page_makes_no_html_of_texts(http, path):
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval", http.get(path).text)


def test_the_pages_speak_to_paths_that_there_are(http):
    asked = {f"/{path}" for page in PAGES for path in re.findall(r'(?:fetch\(|href=)"([\w./]+)"', http.get(page).text)}
    assert asked == {"/rerank", "/v1/models", "/docs", "/./", "/openapi.json"}
