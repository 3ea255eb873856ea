"""What clients of other packages get, and whether a move loses a key: docs/moving.md.

    python -m benchmarks.studies.moving

Runs the page's code with the real packages, each in an environment of its own, as in
``peers``: as it was, with both packages, and as it is now, in a process each, with one
database. Fails if a retry acts again where the page says that it does not, or if what
the page restores is not what the package says; prints what else changes for clients.
The database is SQLite; idemkit needs a Redis.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from sys import modules
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import uuid4

from benchmarks.studies.peers import PEERS, ROOT, elsewhere

PAGE = ROOT / "docs" / "moving.md"
BLOCK = re.compile(r"^```(diff|python)\n# (\S+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# A class that changes its mixin has both in between, the old one outside.
MIXINS = re.compile(r"^-class (\w+)\((\w+), .+\n\+class \1\((\w+), ", re.MULTILINE)
BEFORE, BOTH, AFTER = PHASES = ("before", "both", "after")
SIGNS = {BEFORE: " -", BOTH: " -+", AFTER: " +"}
METHODS = ("POST", "PUT", "PATCH", "DELETE")
# Headers that say nothing of keys, and those that are this app's alone.
OTHER_HEADERS = {
    *("Allow", "Content-Length", "Content-Type", "Vary"),
    *("Idempotency-Error", "Idempotency-Expires", "Idempotent-Replayed"),
}


@dataclass(frozen=True)
class Block:
    """A block of code for one file, which may show how the file changes."""

    language: str
    file: str
    source: str

    def code(self, phase: str = AFTER) -> str:
        """Return the code of a phase of the move."""
        if self.language == "python":
            return self.source
        source = self.source
        if phase == BOTH:
            source = MIXINS.sub(r" class \1(\2, \3, ", source)
        lines = source.splitlines()
        return "".join(f"{line[1:]}\n" for line in lines if line[0] in SIGNS[phase])


def sections() -> dict[str, str]:
    """Return what the page says under each heading."""
    page = PAGE.read_text(encoding="utf-8")
    _, *parts = re.split(r"^## (.+)\n", page, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def packages() -> dict[str, str]:
    """Return the heading of each package's section by its name."""
    found = [re.fullmatch(r"(\S+) \d+\.\d+\.\d+", heading) for heading in sections()]
    return {each[1]: each[0] for each in found if each}


def blocks(heading: str) -> dict[str, Block]:
    """Return a section's blocks of code by their files."""
    found = [Block(*parts) for parts in BLOCK.findall(sections()[heading])]
    return {block.file: block for block in found}


def module(name: str, source: str = "", **names: Any) -> Any:
    """Make a module of the reader's project."""
    made = modules[name] = ModuleType(name)
    vars(made).update(names)
    exec(compile(source, f"docs/moving.md, {name}.py", "exec"), vars(made))
    return made


def main() -> None:
    """Move from each package, and print what changes for its clients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--redis", default="redis://127.0.0.1:6379")
    parser.add_argument("--only", choices=packages())
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--state", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        Move(Path(options.state), options.redis).go()
        return
    for name in [options.only] if options.only else packages():
        print(f"\n{name}\n", flush=True)
        move(name)


def move(name: str) -> None:
    """Move from one package, phase by phase."""
    environment, package = name, PEERS.get(name, {}).get("package")
    if package is None:
        environment = f"{name}-redis"
        package = packages()[name].replace(" ", "[redis]==")
    command = elsewhere("benchmarks.studies.moving", environment, package)
    with TemporaryDirectory(prefix="moving") as place:
        file = Path(place, "state.json")
        state: dict[str, Any] = {"name": name, "keys": {}}
        for phase in PHASES:
            file.write_text(json.dumps({**state, "phase": phase}))
            # What Django logs of refusals is no news.
            done = subprocess.run(
                [*command, "--state", str(file)],
                cwd=ROOT,
                check=False,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            state = json.loads(file.read_text())


class Move:
    """A project in one phase of the move."""

    def __init__(self, file: Path, redis: str) -> None:
        self.file = file
        self.state: dict[str, Any] = json.loads(file.read_text())
        self.phase: str = self.state["phase"]
        self.blocks = blocks(packages()[self.state["name"]])
        self.keeps_responses = self.phase == AFTER and "old.py" in self.blocks
        self.meanwhile: Callable[[], None] | None = None
        self._configure()
        self._serve(redis)
        from django.core.management import call_command

        call_command("check")
        call_command("migrate", verbosity=0)
        self._make_effects()

    def code(self, file: str) -> str:
        """Return the code for a file in this phase."""
        return self.blocks[file].code(self.phase) if file in self.blocks else ""

    def _configure(self) -> None:
        import django
        from django.conf import settings

        apps = ["django.contrib.auth", "django.contrib.contenttypes", "rest_framework"]
        if self.phase != BEFORE:
            apps.append("idempotency")
        own = vars(
            module(
                "settings", self.code("settings.py"), INSTALLED_APPS=apps, MIDDLEWARE=[]
            )
        )
        files = {
            "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
            "LOCATION": str(self.file.parent / "cache"),
        }
        if self.keeps_responses:
            own["MIDDLEWARE"].append("compat.keep_old_responses")
        if self.phase == BOTH and "drf_idempotency" in apps:
            # Both packages read IDEMPOTENCY, and this one ignores what it doesn't know.
            old = self.blocks["settings.py"].code(BEFORE)
            own["IDEMPOTENCY"] = vars(
                module("before", old, INSTALLED_APPS=[], MIDDLEWARE=[])
            )["IDEMPOTENCY"]
            own["SILENCED_SYSTEM_CHECKS"] = ["idempotency.E002"]
        settings.configure(
            SECRET_KEY="for-one-run",
            ALLOWED_HOSTS=["*"],
            ROOT_URLCONF="project_urls",
            USE_TZ=True,
            DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
            CACHES={"default": files, "drf_idem": files},
            DATABASES={
                "default": {
                    "ENGINE": "django.db.backends.sqlite3",
                    "NAME": str(self.file.parent / "db.sqlite3"),
                }
            },
            REST_FRAMEWORK={"DEFAULT_AUTHENTICATION_CLASSES": []},
            **{name: value for name, value in own.items() if name.isupper()},
        )
        django.setup()

    def _serve(self, redis: str) -> None:
        from django.contrib.auth.models import User
        from django.db import connection
        from django.urls import path
        from rest_framework.authentication import BaseAuthentication
        from rest_framework.response import Response
        from rest_framework.settings import api_settings
        from rest_framework.views import APIView

        class ByName(BaseAuthentication):
            def authenticate(self, request: Any) -> Any:
                name = request.headers["Authorization"].partition(" ")[2]
                return User.objects.get_or_create(username=name)[0], None

        def create_order(request: Any) -> Any:
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO effect VALUES (1)")
            if self.meanwhile:
                self.meanwhile()
            return Response(request.data, status=201)

        def handle(view: Any, request: Any) -> Any:
            return create_order(request)

        # Views of the page have no authentication of their own.
        APIView.authentication_classes = [ByName]
        api_settings.DEFAULT_AUTHENTICATION_CLASSES = [ByName]
        methods = {method.lower(): handle for method in METHODS}
        view: Any = type("BaseOrderView", (APIView,), methods)
        module(
            "orders",
            create_order=create_order,
            BaseOrderView=view,
            backend=self._backend(redis),
        )
        module("api", router=SimpleNamespace(urls=[path("orders/", view.as_view())]))
        if self.keeps_responses:
            module("old", self.code("old.py"))
            (compat,) = [
                block.source
                for heading in sections()
                for block in blocks(heading).values()
                if block.file == "compat.py"
            ]
            module("compat", compat)
        if "views.py" in self.blocks:
            found = module("views", self.code("views.py")).OrderView
            module("project_urls", urlpatterns=[path("orders/", found.as_view())])
        else:
            urls = blocks("Middleware")["urls.py"].code(self.phase)
            module("project_urls", urls)

    def _make_effects(self) -> None:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS effect (one integer)")

    def _backend(self, redis: str) -> Any:
        if self.state["name"] != "idemkit" or self.phase == AFTER:
            return None
        from idemkit import RedisBackend

        return RedisBackend.from_url(redis, namespace="moving")

    def effects(self) -> int:
        """Return how many orders there are."""
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM effect")
            return int(cursor.fetchone()[0])

    def send(
        self,
        key: str | None,
        item: str = "tea",
        user: str = "ada",
        method: str = "POST",
        query: str = "",
    ) -> Any:
        """Send an order as the package's clients do."""
        from django.test import Client

        name = "X-Request-ID" if self.state["name"] == "drf-idem" else "Idempotency-Key"
        headers = {"Authorization": f"Name {user}", **({name: key} if key else {})}
        return Client(raise_request_exception=False).generic(
            method,
            f"/orders/{query}",
            json.dumps({"item": item}),
            content_type="application/json",
            headers=headers,
        )

    def go(self) -> None:
        """Do what belongs to the phase, and leave its key to the next ones."""
        keys: dict[str, str] = self.state["keys"]
        always_acts = self.state["name"] == "drf-idem"
        keys[self.phase] = str(uuid4())
        assert self.acts(keys[self.phase])
        for phase, key in keys.items():
            if always_acts and self.phase != AFTER:
                # It hands requests on, and this app knows those that it has seen.
                expected = phase == BEFORE
            else:
                # What the old package replays does not come to this app.
                expected = (phase, self.phase) == (BEFORE, AFTER) and not always_acts
            assert self.acts(key) is expected, (self.phase, phase)
        if self.phase == BEFORE:
            self.state["seen"] = self.seen()
        elif self.phase == AFTER:
            self.compare(self.seen())
        self.file.write_text(json.dumps(self.state))

    def acts(self, key: str) -> bool:
        """Send an order, and return whether that made one."""
        before = self.effects()
        self.send(key)
        return self.effects() > before

    def seen(self) -> dict[str, Any]:
        """Return what clients get."""
        return dict(self._seen())

    def _seen(self) -> Iterator[tuple[str, Any]]:
        key, capitals = str(uuid4()), uuid4()
        yield "no key", self.tell(None)
        yield "first request", self.tell(key)
        yield "retry", self.tell(key)
        yield "another body", self.tell(key, item="coffee")
        yield "another query", self.tell(key, query="?page=2")
        yield "another user", self.tell(key, user="grace")
        self.send(str(capitals))
        yield "the key in capitals", self.tell(str(capitals).upper())
        yield "a key with spaces", self.tell("not a key")
        yield "a key that is no UUID", self.tell(f"order-{uuid4()}")
        yield "while the first runs", self.duplicate()
        for method in METHODS[1:]:
            key = str(uuid4())
            self.send(key, method=method)
            yield f"retry of {method}", self.tell(key, method=method)

    def tell(self, key: str | None, **what: Any) -> list[Any]:
        """Send an order, and return its status, body, headers and effects."""
        before = self.effects()
        response = self.send(key, **what)
        content = response.content.decode().replace(str(key), "<key>")
        headers = {
            name.title(): value.replace(str(key), "<key>")
            for name, value in response.headers.items()
            if name.title() not in {each.title() for each in OTHER_HEADERS}
        }
        if response.status_code == 500:
            content = ""
        return [response.status_code, content, headers, self.effects() - before]

    def duplicate(self) -> list[Any]:
        """Send an order again while it is being made."""
        key, found = str(uuid4()), []

        def again() -> None:
            self.meanwhile = None
            found.append(self.tell(key))

        if self.phase == AFTER:
            return self.running(key)
        with self.locked():
            self.meanwhile = again
            self.send(key)
            self.meanwhile = None
            return found[0] if found else self.tell(key)

    def locked(self) -> AbstractContextManager[Any]:
        """Return what keeps this package's lock, where it looks at nothing else."""
        if self.state["name"] != "django-idempotency-key":
            return nullcontext()
        from idempotency_key.locks.basic import ThreadLock

        return ThreadLock.storage_lock

    def running(self, key: str) -> list[Any]:
        """Send an order whose record says that it is being made."""
        from datetime import timedelta

        from django.utils import timezone

        from idempotency.models import IdempotencyRecord

        self.send(key)
        IdempotencyRecord.objects.filter(key=key).update(
            state="in_progress",
            lease_expires_at=timezone.now() + timedelta(minutes=1),
        )
        return self.tell(key)

    def compare(self, seen: dict[str, Any]) -> None:
        """Print what changes, and check what the page restores."""
        for title, before in self.state["seen"].items():
            after = seen[title]
            if before != after:
                print(f"- {title}: {said(before)}, now {said(after)}")
        if not self.keeps_responses:
            return
        provoked = {
            "idempotency_key_required": "no key",
            "idempotency_key_reused": "another body",
            "idempotency_key_invalid": "a key with spaces",
            "idempotency_in_progress": "while the first runs",
        }
        for code, (status, content) in modules["old"].ERRORS.items():
            before = self.state["seen"][provoked[code]]
            assert [status, content] == [before[0], json.loads(before[1])], code
        before, after = self.state["seen"]["retry"], seen["retry"]
        assert before[:3] == after[:3], (before, after)


def said(seen: list[Any]) -> str:
    """Say what a client got, and what happened."""
    status, content, headers, effects = seen
    more = "".join(f" {name}: {value}" for name, value in headers.items())
    return f"{status} {content[:70]}{more} ({effects} effects)"


if __name__ == "__main__":
    main()
