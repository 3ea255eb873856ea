"""The recipes for clients, against real servers on the tests' database."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection, connections
from rest_framework.authtoken.models import Token

from idempotency.models import IdempotencyRecord
from testproject.school.models import Assignment, SchoolClass
from tests.app.models import Effect
from tests.support.http_servers import Answer, Server, read, serving
from tests.support.lossy_proxy import (
    Proxy,
    Way,
    be_unavailable,
    lose,
    never_arrive,
    pass_on,
    proxied,
)
from tests.support.processes import PATIENCE, ROOT
from tests.support.recipe_modules import cooked
from tests.support.rendezvous import Rendezvous

README = (ROOT / "README.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.usefixtures("database")


class TestPython:
    HEADING = "A client in Python that retries"

    @pytest.fixture
    def proxy(self, server: Server) -> Iterator[Proxy]:
        """Stand before the server, which has the page's address, too."""
        with proxied(server, {"/assignments/": "/function/"}) as proxy:
            yield proxy

    @pytest.fixture
    def waits(self, monkeypatch: Any) -> Iterator[list[float]]:
        """Return how long stamina would have waited before each retry, in seconds."""
        instrumentation = pytest.importorskip(
            "stamina.instrumentation", reason="stamina is not installed"
        )
        found: list[float] = []
        monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=bool))
        instrumentation.set_on_retry_hooks([lambda d: found.append(d.wait_for)])
        yield found
        instrumentation.set_on_retry_hooks(None)

    @pytest.fixture
    def run(self, proxy: Proxy, waits: list[float], monkeypatch: Any) -> Any:
        """Run the page's example against the server; return its modules."""
        httpx = pytest.importorskip("httpx", reason="httpx is not installed")
        client = httpx.Client

        def make_client(base_url: str, timeout: float) -> Any:
            assert base_url == "https://api.example.com"
            headers = {"X-User": "ada"}
            return client(base_url=proxy.url, timeout=timeout, headers=headers)

        def run(*ways: Way) -> Any:
            proxy.ways[:] = ways
            monkeypatch.setattr(httpx, "Client", make_client)
            with cooked(self.HEADING) as recipe:
                return recipe

        return run

    @pytest.mark.parametrize(
        ("ways", "waited"),
        [
            ([], []),
            ([lose], [None]),
            ([never_arrive, lose, lose], [None, None, None]),
            ([be_unavailable], [1.0]),
            ([lose, be_unavailable], [None, 1.0]),
        ],
        ids=["at once", "cut after the commit", "cut thrice", "503", "cut and 503"],
    )
    def test_acts_once(
        self, run: Any, proxy: Proxy, waits: Any, ways: Any, waited: Any
    ) -> None:
        """E1, R2: However the network fails, one effect, and its own answer."""
        answer = run(*ways).example.response
        assert answer.status_code == 201
        assert answer.json() == {"effect": Effect.objects.get().pk}
        assert len(proxy.keys) == 1 + len(ways)
        assert len({*proxy.keys}) == IdempotencyRecord.objects.count() == 1
        assert (lose in ways) is ("Idempotent-Replayed" in answer.headers)
        assert len(waits) == len(waited)
        for seconds, told in zip(waits, waited, strict=True):
            assert told is None or seconds == pytest.approx(told)

    def test_in_progress(
        self, run: Any, proxy: Proxy, server: Server, waits: Any, rendezvous: Rendezvous
    ) -> None:
        """E3: While the first attempt runs it waits as told, and then gets a replay."""
        if connection.vendor == "sqlite":
            pytest.skip("On SQLite a duplicate waits for its turn, and is not refused.")
        data = {"title": "Essay"}
        with ThreadPoolExecutor(1) as pool:
            first = []

            def start_and_lose(ask: Callable[[], Answer]) -> None:
                """Lose the connection while the handler runs."""
                path, key = "/rendezvous/", proxy.keys[-1]
                first.append(server.start(path, data, key, **rendezvous.header))
                first.append(rendezvous.wait())

            def let_go_after(ask: Callable[[], Answer]) -> Answer:
                """Bring a refusal, and let the first attempt end after it."""
                refused = ask()
                assert refused.status == 409
                running, waiting = first
                waiting.let_go()
                first.append(pool.submit(read, running).result(PATIENCE))
                return refused

            modules = run()
            proxy.keys.clear()
            waits.clear()
            Effect.objects.all().delete()
            proxy.ways[:] = [start_and_lose, let_go_after, pass_on]
            import httpx  # noqa: PLC0415  # may be missing

            with httpx.Client(
                base_url="https://api.example.com", timeout=PATIENCE
            ) as client:
                answer = modules.client.post(client, "/rendezvous/", data)
        assert answer.content == first[2].body
        assert answer.headers["Idempotent-Replayed"] == "true"
        assert answer.json() == {"effect": Effect.objects.get().pk}
        assert len({*proxy.keys}) == 1
        assert len(proxy.keys) == 3
        assert waits[1] == pytest.approx(1.0)

    def test_done_and_not_kept(self, run: Any, proxy: Proxy) -> None:
        """X1, R4: By its code the client sees that another key would act again."""

        def lose_for_good(ask: Callable[[], Answer]) -> None:
            """Lose the answer, on its way and in the record."""
            ask()
            IdempotencyRecord.objects.update(body=None, body_size=None)
            connections.close_all()  # of this thread

        assert run(lose_for_good).example.response is None
        assert len(proxy.keys) == 2
        assert Effect.objects.count() == 1

    def test_refused_by_the_example(self, run: Any) -> None:
        """X1: Every other error is the caller's to see."""
        import httpx  # noqa: PLC0415  # may be missing

        def refuse(ask: Callable[[], Answer]) -> Answer:
            return Answer(409, {"Idempotency-Error": "idempotency_key_reused"}, b"")

        with pytest.raises(httpx.HTTPStatusError, match="409"):
            run(refuse)

    def test_other_errors_are_raised(self, run: Any, proxy: Proxy, waits: Any) -> None:
        """What would be refused again is not sent again."""
        import httpx  # noqa: PLC0415  # may be missing

        modules = run()
        with httpx.Client(
            base_url="https://api.example.com", timeout=PATIENCE
        ) as client:
            with pytest.raises(httpx.HTTPStatusError, match="422"):
                modules.client.post(client, "/function/", {}, key=proxy.keys[0])
            with pytest.raises(httpx.HTTPStatusError, match="400"):
                modules.client.post(client, "/function/", {}, key="two, keys")
        assert len(proxy.keys) == 3
        assert waits == []

    def test_what_is_retried(self, run: Any) -> None:
        """Retry-After decides, as seconds or as a date; else the status."""
        import httpx  # noqa: PLC0415  # may be missing

        should_retry = run().client.should_retry

        def error(status: int, **headers: str) -> Any:
            response = httpx.Response(status, headers=headers)
            request = httpx.Request("POST", "http://testserver")
            return httpx.HTTPStatusError("", request=request, response=response)

        date = {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}
        assert should_retry(error(409, **{"Retry-After": "3"})) == 3.0
        assert should_retry(error(429, **date)) is True
        assert should_retry(error(500)) is True
        assert should_retry(error(409)) is False
        assert should_retry(httpx.ReadTimeout("")) is True
        assert should_retry(ValueError()) is False


RUNNER = """\
import axios from "axios";

const { socket, api, token, given } = JSON.parse(process.argv[2]);
axios.defaults.socketPath = socket;
axios.defaults.transformResponse = [(text) => text];
async function send(given) {
%s
  return response;
}
const config = {
  headers: { Authorization: `Bearer ${token}` },
  params: { $idempotency: given },
  data: { title: "Essay" },
};
const responses = [
  await send(given),
  await send(given),
  await axios.get(api, config),
  await send(undefined),
];
console.log(
  JSON.stringify(
    responses.map(({ status, headers, data }) => ({ status, headers, data })),
  ),
);
"""


class TestJavaScript:
    """The README's sample."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Put the sample where Node.js finds axios, with a key and an address."""
        packages = ROOT / ".venv" / "node_modules"
        if shutil.which("node") is None:
            pytest.skip("Node.js is not installed")
        if not (packages / "axios").exists():
            pytest.skip("axios is not installed: npm install --prefix .venv axios")
        (tmp_path / "node_modules").symlink_to(packages)
        (sample,) = re.findall(r"```javascript\n(.*?)```", README, re.DOTALL)
        for theirs, ours in (
            ("crypto.randomUUID()", "given ?? crypto.randomUUID()"),
            ('"https://api.example.com/assignments/"', "api"),
        ):
            assert sample.count(theirs) == 1
            sample = sample.replace(theirs, ours)
        (tmp_path / "runner.mjs").write_text(RUNNER % sample, encoding="utf-8")
        return tmp_path

    @pytest.fixture
    def school_class(self) -> Iterator[SchoolClass]:
        """A class and its teacher, who has a token."""
        ada = get_user_model().objects.create_user("ada")
        Token.objects.create(user=ada)
        yield SchoolClass.objects.create(name="Physics", teacher=ada)
        ada.delete()

    @pytest.fixture
    def school(self) -> Iterator[Server]:
        """Serve the demo project, which answers as the page's API does."""
        own = {
            "DJANGO_SETTINGS_MODULE": "testproject.settings",
            # What axios names as the host of a socket.
            "DJANGO_ALLOWED_HOSTS": "localhost,[::1]",
        }
        with (
            TemporaryDirectory(prefix="idem") as place,
            serving(Path(place), "testproject.wsgi", workers=1, **own) as server,
        ):
            yield server

    def test_axios(
        self, folder: Path, school: Server, school_class: SchoolClass
    ) -> None:
        """K1, K5, R2: With axios's POST one assignment; with its GET, a warning."""
        own = {
            "socket": str(school.address),
            "api": f"http://localhost/api/v2/user/classes/{school_class.pk}/assignments",
            "token": Token.objects.get().key,
            "given": "RfOScIg0JwGS5M7MPS6vCvGlDKkbj3Qc",
        }
        run = subprocess.run(
            ["node", "runner.mjs", json.dumps(own)],
            cwd=folder,
            capture_output=True,
            check=False,
            timeout=PATIENCE,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        first, retry, got, other = json.loads(run.stdout)
        assert [a["status"] for a in (first, retry, got, other)] == [201, 201, 200, 201]
        assert retry["data"] == first["data"]
        assert json.loads(first["data"])["$request"]
        assert "idempotent-replayed" not in first["headers"]
        assert retry["headers"]["idempotent-replayed"] == "true"
        (warning,) = json.loads(got["data"])["$warnings"]
        assert warning["code"] == "IDEMPOTENCY_KEY_IGNORED"
        titles = Assignment.objects.values_list("title", flat=True)
        assert [*titles] == ["Essay", "Essay"]  # the last one has a key of its own
        keys = {*IdempotencyRecord.objects.values_list("key", flat=True)}
        assert len(keys) == 2
        assert own["given"] in keys
