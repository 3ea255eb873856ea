"""What this package and others cost with a network before their stores.

    python -m benchmarks.studies.peers_network

Each package runs in an environment of its own, as in ``peers``; its PostgreSQL and its
Redis are behind relays that delay, and count round trips. Requests in process, on
connections that persist, turn by turn with the bare view in a transaction
(ATOMIC_REQUESTS) of the same process. The view inserts one row, outside of that in
autocommit, and returns 1 KiB of JSON; who sends it is known without a query.

A round sends new keys, and sends each again: no turn counts unless every new key has
left one row, and every replay has left none and is the first response byte for byte.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from benchmarks.answers import TEXT
from benchmarks.figures import shown, spread_of_ratios, table, tell
from benchmarks.relay import Relay, relay
from benchmarks.studies.peers import PEERS, ROOT, World, elsewhere, load

BARE, FIRST, REPLAY = KINDS = ("bare", "first-time", "replay")
HEAD = (
    *("package and store", "round trips of a first-time request", "of a replay"),
    *("first-time, of the bare view", "replay, of the bare view"),
)
# A key as "manage.py idempotency_encryption_key" prints one, here of zeros.
ENCRYPTION_KEY = f"0ee2aae1:{'A' * 43}"
BODY = {"title": "Essay on tides", "due": "2026-12-01", "points": 10}


def cases(database: str = "", redis: str = "") -> dict[str, dict[str, Any]]:
    """Return each package with each of its stores, which are at these addresses."""
    there, here = PEERS["drf-idempotency"], PEERS["django-idempotency"]
    return {
        "django-idempotency": here,
        "django-idempotency-encrypted": {
            **here,
            "package": f"{here['package']}[encryption]",
            "settings": {
                **here["settings"],
                "IDEMPOTENCY": {"ENCRYPTION_KEYS": [ENCRYPTION_KEY]},
            },
        },
        "idemkit": {
            "package": "idemkit[postgres]==1.0.2",
            "settings": {},
            "idemkit": ("idemkit:PostgresBackend", f"{database}/peer_idemkit"),
        },
        "idemkit-redis": {
            "package": "idemkit[redis]==1.0.2",
            "settings": {},
            "idemkit": ("idemkit:RedisBackend", redis),
        },
        "drf-idempotency": there,
        "drf-idempotency-redis": {
            "package": there["package"].replace("==", "[redis]=="),
            "settings": {
                **there["settings"],
                "IDEMPOTENCY": {
                    "BACKEND": "drf_idempotency.backends.redis.RedisBackend",
                    "BACKEND_OPTIONS": {"url": redis},
                },
            },
        },
        **{
            name: PEERS[name]
            for name in ("djangorestframework-idempotency-key", "drf-idempotencykey")
        },
    }


class Traffic(World):
    """A project with the view, guarded and bare, and requests to it."""

    def __init__(self, name: str, user: str, database: Relay, redis: Relay) -> None:
        from django.core.handlers.wsgi import WSGIHandler
        from django.db import connection

        self.lines = (database, redis)
        place = f"{user}@127.0.0.1:{database.port}"
        found = cases(f"postgresql://{place}", f"redis://127.0.0.1:{redis.port}")
        options = argparse.Namespace(database=place, atomic_requests=False)
        super().__init__(found[name], name.replace("-", "_"), options)
        connection.close()
        connection.settings_dict["CONN_MAX_AGE"] = None
        self.settings = connection.settings_dict
        self.application: Any = WSGIHandler()
        self.firsts: dict[str | None, bytes] = {}

    def paths(self) -> list[Any]:
        """Return the guarded view's and the bare one's."""
        from django.urls import path

        return [*super().paths(), path("bare/", self.view({}))]

    def mixins(self, peer: dict[str, Any]) -> tuple[type, ...]:
        """Return idemkit's class, too, which has to be made."""
        if "idemkit" not in peer:
            return super().mixins(peer)
        store, url = peer["idemkit"]
        if "Postgres" in store:
            asyncio.run(load("idemkit.backends.postgres:init_pg")(url))
        config = load("idemkit:HttpConfig")(scope=lambda request: str(request.user.pk))
        made = load("idemkit.contrib.drf:idempotent_view")
        return (made(backend=load(store).from_url(url), config=config),)

    def authentication(self) -> type:
        """Return a class that knows the user already."""
        from django.contrib.auth.models import User
        from rest_framework.authentication import BaseAuthentication

        user = User.objects.get_or_create(username="ada")[0]

        class Known(BaseAuthentication):
            def authenticate(self, request: Any) -> Any:
                return user, None

        return Known

    def answer(self) -> dict[str, Any]:
        """Return what no other run of the handler returns."""
        return {"id": str(uuid4()), "text": TEXT[:1000]}

    def trips(self) -> int:
        """Return how often the application has waited for a store so far."""
        return sum(line.trips for line in self.lines)

    def turn(self, kind: str, requests: int) -> tuple[float, float]:
        """Send requests of a kind; return their median of seconds, and their trips."""
        keys: list[str | None] = [None] * requests
        if kind == FIRST:
            keys = [str(uuid4()) for _request in range(requests)]
        elif kind == REPLAY:
            keys = [*self.firsts]
        environs = [environ(key) for key in keys]
        effects = self.effects()
        self.settings["ATOMIC_REQUESTS"] = kind == BARE
        gc.collect()
        before = self.trips()
        seconds, bodies = zip(*map(self.sent, environs), strict=True)
        trips = (self.trips() - before) / len(keys)
        assert self.effects() - effects == (0 if kind == REPLAY else len(keys)), kind
        told = dict(zip(keys, bodies, strict=True))
        assert kind != REPLAY or told == self.firsts, "a replay is another response"
        if kind == FIRST:
            self.firsts = told
        return median(seconds), trips

    def sent(self, environ: dict[str, Any]) -> tuple[float, bytes]:
        """Send one request, and return its seconds and the body that came back."""
        started = time.perf_counter()
        response = self.application(environ, lambda status, headers: None)
        response.close()
        seconds = time.perf_counter() - started
        assert response.status_code == 201, response.content
        return seconds, response.content


def environ(key: str | None) -> dict[str, Any]:
    """Return a request to the guarded view, or to the bare one without a key."""
    from django.test import RequestFactory

    place, headers = ("/bare/", {}) if key is None else ("/", {"Idempotency-Key": key})
    made = RequestFactory().post(
        place, BODY, content_type="application/json", headers=headers
    )
    return dict(made.environ)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one package, in the environment that has it."""
    user, _, place = options.database.partition("@")
    with relay(place) as database, relay(options.redis) as redis:
        traffic = Traffic(options.here, user, database, redis)
        for kind in KINDS:
            traffic.turn(kind, 10)  # connections, caches, plans
        database.set_round_trip(options.round_trip)
        redis.set_round_trip(options.round_trip)
        turns: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        draw = random.Random(1)
        for _round in range(options.rounds):
            for kind in draw.sample(KINDS, len(KINDS)):
                turns[kind].append(traffic.turn(kind, options.requests))
    seconds = {kind: [each for each, _trips in turns[kind]] for kind in KINDS}
    return {
        kind: {
            "trips": median(trips for _seconds, trips in turns[kind]),
            "milliseconds": 1000 * median(seconds[kind]),
            "ratio": spread_of_ratios(seconds[kind], seconds[BARE]),
        }
        for kind in KINDS
    }


def run_elsewhere(name: str, package: str) -> dict[str, Any]:
    """Measure one package in an environment that has no other, or tell why not."""
    try:
        command = elsewhere("benchmarks.studies.peers_network", name, package)
    except subprocess.CalledProcessError:
        return {"why_not": "pip can't install it here"}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        return {"why_not": done.stderr.splitlines()[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def title(name: str, package: str) -> str:
    """Return a package's name and version, and its store."""
    name, is_redis, _ = name.partition("-redis")
    name, is_encrypted, _ = name.partition("-encrypted")
    version = package.partition("==")[2]
    store = "Redis" if is_redis else "PostgreSQL"
    return f"{name} {version}".strip() + f", {store}" + is_encrypted.replace("-", ", ")


def report(told: dict[str, Any]) -> str:
    """Return the figures as a table."""
    found = {name: cost for name, cost in told["peers"].items() if FIRST in cost}
    bare = {f"{cost[BARE]['trips']:g}" for cost in found.values()}
    rows = [("bare view, ATOMIC_REQUESTS", " or ".join(sorted(bare)), "", "1", "")]
    for name, cost in told["peers"].items():
        if "why_not" in cost:
            rows.append((name, cost["why_not"], "", "", ""))
        else:
            costs = cost[FIRST], cost[REPLAY]
            trips = (f"{each['trips']:g}" for each in costs)
            rows.append((name, *trips, *(shown(each["ratio"]) for each in costs)))
    network = f"a relay that adds {told['round_trip']:g} ms to a round trip"
    return f"{network}\n\n{table(HEAD, rows)}"


def main() -> int:
    """Install and measure each package, print, and write JSON where that is wanted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--database", default="postgres@127.0.0.1:5432")
    parser.add_argument("--redis", default="127.0.0.1:6379")
    parser.add_argument("--round-trip", type=float, default=0.5, help="milliseconds")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--requests", type=int, default=30, help="of a kind, a round")
    parser.add_argument("--only", choices=cases(), action="append", help="repeatable")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--here", choices=cases(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options)))
        return 0
    packages = {name: cases()[name]["package"] for name in options.only or cases()}
    found = {
        title(name, package): run_elsewhere(name, package)
        for name, package in packages.items()
    }
    tell({"round_trip": options.round_trip, "peers": found}, report, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
