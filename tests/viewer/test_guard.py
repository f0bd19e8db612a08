"""Tests of access control: other hosts, other origins and requests without the token are refused."""

import http.client
import json
import urllib.error
import urllib.request

import pytest

pytest.importorskip("uvicorn", reason="the page (extra view) is not installed")
from starlette.datastructures import Headers

from keras_pneumo.viewer.guard import Guard, Keys, cookie_name


def test_another_host_or_origin_is_refused(page):
    drop = "/api/drop?name=x"
    for path, data, headers in [
        ("/", None, {"Host": f"evil.example:{page.port}"}),
        ("/api/about", None, {"Host": "evil.example"}),
        ("/api/about", None, {"Sec_Fetch_Site": "cross-site"}),
        ("/api/about", None, {"Origin": "http://evil.example"}),
        (drop, b"x", {"Origin": "http://evil.example"}),
        (drop, b"x", {"Origin": "null"}),
        (drop, b"x", {"Origin": f"http://127.0.0.1:{page.port + 1}"}),
        (f"/?token={page.keys.printed}", None, {"Host": "evil.example"}),
    ]:
        status, body = page.json(path, data, **headers)
        assert status == 403, (path, headers)
        assert body["error"]
        assert "token" not in body["error"], "it is refused for where it comes from"
    cookie = {"Cookie": f"{cookie_name(page.port)}={page.keys.cookie}"}
    request = urllib.request.Request(page.address + drop, b"x", cookie)  # no origin at all
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=30)
    assert refusal.value.code == 403
    assert page.json("/api/about", Host=f"localhost:{page.port}")[0] == 200


def test_without_the_token_nothing_is_answered(page):
    for cookie in ("", f"{cookie_name(page.port)}=x", f"keras_pneumo_1={page.keys.cookie}", f"a={page.keys.printed}"):
        for path in ("/", "/page/app.js", "/api/about", "/api/folder/0", "/?token=x", "/?token=", "/?token=%FF"):
            status, body = page.json(path, Cookie=cookie)
            assert (status, "with its token" in body["error"]) == (403, True), path
        assert page.ask("/api/about?token=" + page.keys.printed, Cookie=cookie)[0] == 403
        assert page.ask("/api/drop?name=x", b"x", Cookie=cookie)[0] == 403


def test_a_token_is_exchanged_for_a_cookie(page):
    def opened(token):
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        try:
            with browser.open(f"{page.address}/?token={token}", timeout=30) as answer:
                assert answer.url == page.address + "/", "the token is no longer in the address"
            return json.load(browser.open(page.address + "/api/about", timeout=30))["name"] == "bright"
        except urllib.error.HTTPError as error:
            return error.code

    once = page.keys.once
    assert [opened(once), opened(once), opened("")] == [True, 403, 403]
    assert [opened(page.keys.printed), opened(page.keys.printed)] == [True, True]
    assert len({page.keys.printed, once, page.keys.cookie, Keys().printed}) == 4
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=30)
    connection.request("GET", f"/?token={page.keys.printed}")
    cookie = connection.getresponse().headers["set-cookie"].lower()
    connection.close()
    assert {"httponly", "samesite=strict", "path=/"} <= {part.strip() for part in cookie.split(";")}


def test_browsers_leave_out_the_default_port():
    guard = Guard(None, 80, Keys())
    for host in ("127.0.0.1", "127.0.0.1:80", "localhost"):
        assert guard.refusal(Headers({"host": host, "origin": f"http://{host}"}), "POST") == ""
    assert guard.refusal(Headers({"host": "evil.example"}), "GET")
    assert Guard(None, 8080, Keys()).refusal(Headers({"host": "127.0.0.1"}), "GET")
