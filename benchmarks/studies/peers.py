"""What other packages do in the situations that a key is for: docs/comparison.md.

    python -m benchmarks.studies.peers

Each package is installed into an environment of its own, below var/peers, and asked
through Django's test client, on PostgreSQL, where each has a database of its own. An
effect is a row that the handler writes, in autocommit or, with ``--atomic-requests``,
in the transaction that Django opens. ``--database`` is a PostgreSQL to write to.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMMON = ("django>=5.2,<5.3", "djangorestframework>=3.16,<3.19", "psycopg[binary]")
# Waiting for a claim to time out takes seconds here, not a package's own default.
TIME_OUT = 2

# What makes each a guard of the view: the settings that its README names, and its view.
PEERS: dict[str, dict[str, Any]] = {
    "django-idempotency": {
        "package": str(ROOT),
        "settings": {"INSTALLED_APPS": ["idempotency"]},
        "decorator": "idempotency.decorators:idempotent",
    },
    "django-idempotency-key": {
        "package": "django-idempotency-key==1.3.0",
        "settings": {
            "MIDDLEWARE": ["idempotency_key.middleware.IdempotencyKeyMiddleware"],
            "IDEMPOTENCY_KEY": {
                "STORAGE": {"CLASS": "idempotency_key.storage.CacheKeyStorage"},
                "CONFLICT_STATUS_CODE": None,
            },
        },
    },
    "djangorestframework-idempotency-key": {
        "package": "djangorestframework-idempotency-key==1.0.3",
        "settings": {
            "INSTALLED_APPS": ["rest_framework_idempotency_key"],
            "MIDDLEWARE": [
                "rest_framework_idempotency_key.middleware.IdempotencyKeyMiddleware"
            ],
            "IDEMPOTENCY_KEY_LOCK_TIMEOUT": TIME_OUT,
        },
        "decorator": (
            "rest_framework_idempotency_key.decorators:simple_idempotency_key_method"
        ),
    },
    "drf-idem": {
        "package": "drf-idem==0.1.1",
        "settings": {
            "INSTALLED_APPS": ["drf_idem"],
            "MIDDLEWARE": ["drf_idem.middleware.IdempotencyMiddleware"],
            "DRF_IDEM": {"HEADER": "HTTP_IDEMPOTENCY_KEY"},
        },
    },
    "drf-idempotency": {
        "package": "drf-idempotency==1.0.0",
        "settings": {
            "INSTALLED_APPS": ["drf_idempotency"],
            "MIDDLEWARE": ["drf_idempotency.middleware.IdempotencyMiddleware"],
            "IDEMPOTENCY": {"LOCK_TTL_SECONDS": TIME_OUT},
        },
    },
    "drf-idempotencykey": {
        "package": "drf-idempotencykey==0.2.0",
        "settings": {
            "INSTALLED_APPS": ["drf_idempotencykey"],
        },
        # Claims have no time-out of their own: they expire as answers do.
        "timed_out": {"IDEMPOTENCY_KEY_EXPIRATION_MINUTES": TIME_OUT / 60},
        "mixin": "drf_idempotencykey.mixins:DrfIdempotencyKeyMixin",
    },
}


def main() -> None:
    """Install and ask each package, and print what it did as a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", default="postgres@127.0.0.1:5432")
    parser.add_argument("--atomic-requests", action="store_true")
    parser.add_argument("--only", choices=PEERS)
    parser.add_argument("--here", choices=PEERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(ask(options.here, options)))
        return
    names = [options.only] if options.only else list(PEERS)
    found = {name: run_elsewhere(name) for name in names}
    situations = list(next(iter(found.values())))
    print("| |", " | ".join(names), "|")
    print("|---" * (len(names) + 1) + "|")
    for situation in situations:
        cells = " | ".join(found[name][situation] for name in names)
        print(f"| {situation} | {cells} |")


def elsewhere(module: str, name: str, package: str) -> list[str]:
    """Return what runs a module where no other package is, after installing this."""
    place = ROOT / "var" / "peers" / name
    python = place / "bin" / "python"
    if not python.exists():
        venv.create(place, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", *COMMON]
        subprocess.run([*install, package], check=True)
    return [str(python), "-m", module, *sys.argv[1:], "--here", name]


def run_elsewhere(name: str) -> dict[str, str]:
    """Ask one package in an environment that has no other."""
    done = subprocess.run(
        elsewhere("benchmarks.studies.peers", name, PEERS[name]["package"]),
        check=True,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    answers: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return answers


def load(place: str) -> Any:
    """Return what ``module:name`` means."""
    from importlib import import_module

    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def ask(name: str, options: argparse.Namespace) -> dict[str, str]:
    """Bring about each situation with one package."""
    world = World(PEERS[name], name.replace("-", "_"), options)
    situations: dict[str, Callable[[World], str]] = {
        "retry after an answer": retried,
        "retry after a crash behind the effect": crashed,
        "the same, once its claim has timed out": timed_out,
        "retry after a crash behind the view": crashed_later,
        "that, once its claim has timed out": timed_out,
        "duplicate while the first runs": duplicate,
        "another body under the key": reused,
        "another user, the same key and body": other_user,
        "retry after the handler raised behind the effect": raised,
        "retry after the handler returned 400": returned_400,
    }
    return {title: situation(world) for title, situation in situations.items()}


class World:
    """A project with one protected view, whose handler each situation chooses."""

    def __init__(
        self, peer: dict[str, Any], database: str, options: argparse.Namespace
    ) -> None:
        import django
        import psycopg
        from django.conf import settings

        user, _, place = options.database.partition("@")
        host, _, port = place.partition(":")
        with psycopg.connect(
            user=user, host=host, port=port, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS peer_{database}")
            connection.execute(f"CREATE DATABASE peer_{database}")
        self.peer = peer
        chosen = dict(peer["settings"])
        files = {
            "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
            "LOCATION": tempfile.mkdtemp(prefix="peers"),
        }
        settings.configure(
            **{
                "SECRET_KEY": "for-one-run",
                "ALLOWED_HOSTS": ["*"],
                "ROOT_URLCONF": "peers_urls",
                "USE_TZ": True,
                "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
                "CACHES": {"default": files, "drf_idem": files},
                "DATABASES": {
                    "default": {
                        "ENGINE": "django.db.backends.postgresql",
                        "NAME": f"peer_{database}",
                        "USER": user,
                        "HOST": host,
                        "PORT": port,
                        "ATOMIC_REQUESTS": options.atomic_requests,
                    }
                },
                "REST_FRAMEWORK": {"DEFAULT_AUTHENTICATION_CLASSES": []},
                "LOGGING_CONFIG": None,
                **chosen,
                "MIDDLEWARE": [*chosen.get("MIDDLEWARE", ()), "peers_urls.end_here"],
                "INSTALLED_APPS": [
                    "django.contrib.auth",
                    "django.contrib.contenttypes",
                    "rest_framework",
                    *chosen.get("INSTALLED_APPS", ()),
                ],
            }
        )
        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        self.work: Callable[[], int] = self.act
        self.keys = 0
        self.ends_behind_the_view = False
        self.status = 0
        self._serve()
        self._make_effects()

    def _serve(self) -> None:
        from types import ModuleType

        urls: Any = ModuleType("peers_urls")
        urls.urlpatterns = self.paths()
        urls.end_here = self._end_here
        sys.modules["peers_urls"] = urls

    def paths(self) -> list[Any]:
        """Return the project's URLs."""
        from django.urls import path

        return [path("", self.view(self.peer))]

    def view(self, peer: dict[str, Any]) -> Any:
        """Return a view that does the work, with what guards it of a package."""
        from rest_framework.response import Response
        from rest_framework.views import APIView

        def post(view: Any, request: Any) -> Any:
            status = self.work()
            return Response(self.answer(), status=status)

        if "decorator" in peer:
            post = load(peer["decorator"])(post)
        parts = {"authentication_classes": [self.authentication()], "post": post}
        view: Any = type("View", (*self.mixins(peer), APIView), parts)
        return view.as_view()

    def mixins(self, peer: dict[str, Any]) -> tuple[type, ...]:
        """Return the classes by which a package guards a view."""
        return (load(peer["mixin"]),) if "mixin" in peer else ()

    def answer(self) -> dict[str, Any]:
        """Return what the view tells."""
        return {"effects": self.effects()}

    def authentication(self) -> type:
        """Return the class that says who sends a request."""
        from django.contrib.auth.models import User
        from rest_framework.authentication import BaseAuthentication

        class ByName(BaseAuthentication):
            def authenticate(self, request: Any) -> Any:
                name = request.headers["Authorization"].partition(" ")[2]
                return User.objects.get_or_create(username=name)[0], None

        return ByName

    def _end_here(self, get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Stand between every other middleware and the view, and end the process."""

        def middleware(request: Any) -> Any:
            response = get_response(request)
            if self.ends_behind_the_view:
                os._exit(1)
            return response

        return middleware

    def _make_effects(self) -> None:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE effect (key integer)")

    def act(self, status: int = 201) -> int:
        """Commit an effect, unless somebody has opened a transaction around it."""
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO effect VALUES (%s)", [self.keys])
        return status

    def effects(self) -> int:
        """Return how many there are of the latest key."""
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM effect WHERE key = %s", [self.keys])
            return int(cursor.fetchone()[0])

    def begin(self) -> None:
        """Let what follows be about a new key."""
        self.keys += 1
        self.work = self.act

    def send(self, item: str = "tea", user: str = "ada") -> Any:
        """POST with the latest key."""
        from django.test import Client

        return Client(raise_request_exception=False).post(
            "/",
            {"item": item},
            content_type="application/json",
            headers={
                "Authorization": f"Name {user}",
                "Idempotency-Key": f"7f0c1f8e-2f2c-4c0e-9f60-{self.keys:012}",
            },
        )

    def say(self, response: Any, first: Any = None) -> str:
        """Say what came back, and how many effects there are."""
        self.status = response.status_code
        same = first is not None and response.content == first.content
        told = f"{response.status_code}{', the first answer' if same else ''}"
        return f"{told}; effects: {self.effects()}"


def retried(world: World) -> str:
    """Send it again."""
    world.begin()
    first = world.send()
    return world.say(world.send(), first)


def die(world: World) -> None:
    """Send it from a process that ends on the way."""
    from django.db import connections

    connections.close_all()
    child = os.fork()
    if not child:
        world.send()
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def crashed(world: World) -> str:
    """End the process when the handler has acted, then send it again."""
    world.begin()
    world.work = lambda: os._exit(world.act() and 1)
    die(world)
    world.work = world.act
    return world.say(world.send())


def crashed_later(world: World) -> str:
    """End the process when the view has returned, then send it again."""
    world.begin()
    world.ends_behind_the_view = True
    die(world)
    world.ends_behind_the_view = False
    return world.say(world.send())


def timed_out(world: World) -> str:
    """Where it was refused, wait for longer than a claim holds, and send it again."""
    from django.test import override_settings

    if world.status < 400:
        return "as before"
    time.sleep(TIME_OUT + 1)
    with override_settings(**world.peer.get("timed_out", {})):
        return world.say(world.send())


def duplicate(world: World) -> str:
    """Send it while it runs; the first one goes on after that."""
    from django.db import connections

    world.begin()
    acted, may_end = threading.Event(), threading.Event()

    def wait() -> int:
        status = world.act()
        acted.set()
        may_end.wait(5)  # A duplicate may be made to wait.
        return status

    def send() -> None:
        world.send()
        connections.close_all()

    world.work = wait
    first = threading.Thread(target=send)
    first.start()
    acted.wait(60)
    world.work = world.act
    second = world.send()
    may_end.set()
    first.join()
    return world.say(second)


def reused(world: World) -> str:
    """Send something else under the key."""
    world.begin()
    first = world.send()
    return world.say(world.send("coffee"), first)


def other_user(world: World) -> str:
    """Send it as somebody else."""
    world.begin()
    first = world.send()
    return world.say(world.send(user="grace"), first)


def raised(world: World) -> str:
    """Let the handler fail when it has acted, and send it again."""
    world.begin()

    def fail() -> int:
        world.act()
        raise ZeroDivisionError

    world.work = fail
    assert world.send().status_code == 500
    world.work = world.act
    return world.say(world.send())


def returned_400(world: World) -> str:
    """Let the handler refuse, mend what was wrong, and send it again."""
    world.begin()
    world.work = lambda: 400
    first = world.send()
    assert first.status_code == 400, first.content
    world.work = world.act
    return world.say(world.send(), first)


if __name__ == "__main__":
    main()
