"""The documents say what the code does."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import unittest
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from dataclasses import fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.checks import run_checks
from django.core.management import get_commands, load_command_class
from django.db import transaction
from django.db.models.signals import post_delete
from django.db.transaction import TransactionManagementError
from django.test import TestCase, override_settings
from rest_framework.exceptions import ValidationError
from rest_framework.response import Response
from rest_framework.serializers import ModelSerializer
from rest_framework.test import APIClient, APIRequestFactory

import idempotency.mixins
from idempotency import client_warnings, context, exceptions, hooks
from idempotency.admin import SEE_BODY
from idempotency.conf import SETTINGS, get_settings, policy
from idempotency.encryption import new_entry
from idempotency.models import IdempotencyRecord
from idempotency.responses import ERROR_HEADER, EXPIRES_HEADER, REPLAYED_HEADER
from idempotency.schedules import PURGE_TASK
from idempotency.signals import PREFIX, RequestDetails
from tests.app.models import Effect
from tests.conftest import KEY, once
from tests.support.processes import PATIENCE, ROOT
from tests.support.record_factories import make_record

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES
}
README = DOCUMENTS["README.md"]
CONTRACT = DOCUMENTS["docs/contract.md"]
# Whose Python says which file of the reader's project it is for, and runs here.
SAMPLES = (
    "README.md",
    "docs/codes.md",
    "docs/databases.md",
    "docs/guarantees.md",
    "docs/security.md",
    "docs/settings.md",
)

CHAPTERS = {"K": 7, "S": 2, "F": 5, "E": 17, "O": 5, "R": 6, "P": 4, "A": 4, "X": 2}
RULES = [f"{letter}{n + 1}" for letter, size in CHAPTERS.items() for n in range(size)]
RULES.insert(RULES.index("R2") + 1, "R2b")
RULES.insert(RULES.index("A1"), "P5")

Rows = list[dict[str, str]]


def tables(document: str) -> Iterator[Rows]:
    """Yield each table of a document, its rows as dictionaries of stripped cells."""
    for block in re.findall(r"(?:^\|.*\n)+", document, re.MULTILINE):
        lines = [
            [cell.strip() for cell in line.strip().strip("|").split(" | ")]
            for line in block.replace("|\n", " |\n").splitlines()
        ]
        head, _rule, *rows = lines
        yield [dict(zip(head, row, strict=True)) for row in rows]


def table(*head: str, document: str | None = None) -> Rows:
    """Return the one table that begins with these columns, of all documents or one."""
    found = [
        rows
        for text in ([document] if document else DOCUMENTS.values())
        for rows in tables(text)
        if tuple(rows[0])[: len(head)] == head
    ]
    assert len(found) == 1, f"{len(found)} tables have the columns {head}"
    return found[0]


def code(cell: str) -> str:
    """Return what a cell says in code, which must be all that it says."""
    match = re.fullmatch(r"`([^`]+)`", cell)
    assert match is not None, f"not code: {cell}"
    return match[1]


def refusals() -> list[type[exceptions.IdempotencyError]]:
    return [
        found
        for found in vars(exceptions).values()
        if isinstance(found, type)
        and issubclass(found, exceptions.IdempotencyError)
        and found is not exceptions.IdempotencyError
    ]


@cache
def docstrings_of_tests() -> list[str]:
    """Return the docstrings of tests and of their scenarios."""
    return [
        ast.get_docstring(node) or ""
        for path in sorted(Path(__file__).parent.rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    ]


def blocks(language: str, *names: str) -> list[str]:
    """Return the code of a language in some documents, or in all."""
    return [
        code
        for name in names or DOCUMENTS
        for code in re.findall(
            rf"^```{language}\n(.*?)^```", DOCUMENTS[name], re.DOTALL | re.MULTILINE
        )
    ]


def block(first_line: str) -> list[str]:
    """Return the samples for one file of the reader's project."""
    return [b for b in blocks("python", *SAMPLES) if b.startswith(f"# {first_line}")]


class Assignment:
    """What the samples call a model of the reader's own."""

    objects = SimpleNamespace(
        all=Effect.objects.all,
        count=Effect.objects.count,
        create=lambda title: SimpleNamespace(
            pk=Effect.objects.create(note=title).pk, title=title
        ),
    )


class AssignmentSerializer(ModelSerializer[Effect]):
    """What the samples call a serializer of the reader's own."""

    class Meta:
        model = Effect
        fields = ("id", "note")


def run(source: str, **names: Any) -> dict[str, Any]:
    """Run a sample and return what it defined."""
    namespace = {"__name__": "sample", **names}
    exec(compile(source, "sample", "exec"), namespace)
    return namespace


def views() -> Iterator[dict[str, Any]]:
    for source in block("views.py"):
        yield run(
            source, Assignment=Assignment, AssignmentSerializer=AssignmentSerializer
        )


def create_assignment() -> Any:
    (view,) = [v["create_assignment"] for v in views() if "create_assignment" in v]
    return view


# The contract


def test_the_contract_has_every_rule_once() -> None:
    """Each rule has one heading, in the order of the ids."""
    headings = re.findall(r"^### (\w+)", CONTRACT, re.MULTILINE)
    assert headings == RULES


def test_the_contract_is_kept_whole() -> None:
    """The contract promises nothing that is not built."""
    assert "not in this release" not in CONTRACT.lower()


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_a_test(rule: str) -> None:
    """A test that proves a rule names its id in the docstring."""
    named = re.compile(rf"\b{rule}\b")
    assert any(map(named.search, docstrings_of_tests())), f"no test names {rule}"


def test_tests_name_known_rules_only() -> None:
    """An id in a docstring is one of the contract's."""
    named = {
        rule
        for docstring in docstrings_of_tests()
        for rule in re.findall(r"\b[KSFEORPAX]\d{1,2}b?\b", docstring)
    }
    assert named <= {*RULES}


# The tables, each in one document


def test_code_table() -> None:
    """Codes and statuses are those of the exceptions, each once (X1)."""
    rows = [
        (code(row["code"]), int(row["status"]))
        for row in table("code", "status", "what to do")
    ]
    assert sorted(rows) == sorted((r.default_code, r.status_code) for r in refusals())
    for name, status in rows:
        pair = rf"\b{status}\b[^|\n]{{0,10}}`{name}`|`{name}`[ |,(]*{status}\b"
        found = [n for n, text in DOCUMENTS.items() for _ in re.findall(pair, text)]
        found_in_tables = [
            n
            for n, text in DOCUMENTS.items()
            for row in re.findall(r"^\|.*$", text, re.MULTILINE)
            if f"`{name}`" in row and re.search(rf"\b{status}\b", row)
        ]
        for places in (found, found_in_tables):
            assert places == ["README.md"], f"{name} has its status in {places}"


def test_retry_after() -> None:
    """The code table names Retry-After where the refusal has it (X1)."""
    rows = table("code", "status", "what to do")
    said = {code(row["code"]) for row in rows if "`Retry-After`" in row["what to do"]}
    assert said == {r.default_code for r in refusals() if r.wait is not None}


def test_warning_table() -> None:
    """Warnings are those that the app knows."""
    known = {
        found.code
        for found in vars(client_warnings).values()
        if isinstance(found, client_warnings.ClientWarning)
    }
    rows = table("warning", "meaning")
    assert [code(row["warning"]) for row in rows] == sorted(known)
    assert f"`{client_warnings.WARNINGS_MEMBER}`" in DOCUMENTS["docs/codes.md"]


def test_every_code_in_the_documents_exists() -> None:
    """No document names a code that the app does not have (X1)."""
    known = {r.default_code for r in refusals()}
    # Of a log line.
    extras = {PREFIX + field.name for field in fields(RequestDetails)}
    extras.add(f"{PREFIX}event")
    for name, document in DOCUMENTS.items():
        named = re.findall(r"`(idempotency_\w+)`", document)
        attributes = {f"idempotency_{name}" for name in policy.OPTIONS}
        functions = {"idempotency_exempt", "idempotency_key"}
        assert {*named} <= known | attributes | functions | extras, name


def test_settings_table() -> None:
    """Every setting is listed with its default."""
    rows = table("key", "type", "default", "meaning")
    assert [code(row["key"]) for row in rows] == list(SETTINGS)
    from datetime import timedelta  # noqa: PLC0415  # for eval

    for row in rows:
        default = eval(code(row["default"]), {"timedelta": timedelta})
        setting = SETTINGS[code(row["key"])]
        assert default == setting.default, row["key"]
        assert type(default) is type(setting.default)
        assert row["type"].endswith("or None") is setting.is_nullable, row["key"]


def test_options_table() -> None:
    """Every option is listed with its attribute and its setting."""
    rows = table("`@idempotent(...)`", "mixin", "setting", "meaning")
    assert [code(row["`@idempotent(...)`"]) for row in rows] == list(policy.OPTIONS)
    for row in rows:
        name = code(row["`@idempotent(...)`"])
        assert code(row["mixin"]) == f"idempotency_{name}"
        assert hasattr(idempotency.mixins.IdempotencyMixin, f"idempotency_{name}")
        setting = name.upper() if name.upper() in SETTINGS else None
        assert row["setting"] == (f"`{setting}`" if setting else "none")


def test_hooks_table() -> None:
    """Every hook is listed; options are what the options table is for."""
    rows = table("hook", "what it decides")
    named = [code(row["hook"]).partition("(")[0] for row in rows]
    public = [
        name for name in vars(hooks.Hooks) if callable(getattr(hooks.Hooks, name))
    ]
    known = [name for name in public if not name.startswith("_")]
    assert named == [name for name in known if name != "get_idempotency_options"]
    for row in rows:
        name, _, arguments = code(row["hook"]).rstrip(")").partition("(")
        accepted = getattr(hooks.Hooks, name).__code__.co_varnames
        assert (
            tuple(arguments.split(", ")) == accepted[1 : len(arguments.split(", ")) + 1]
        )


def test_headers_table() -> None:
    """Every header that the app reads or writes is listed."""
    named = {code(row["header"]) for row in table("header", "on", "meaning")}
    assert named == {
        get_settings().HEADER,
        ERROR_HEADER,
        REPLAYED_HEADER,
        EXPIRES_HEADER,
        client_warnings.WARNING_HEADER,
        "Retry-After",
    }


def test_permissions_table() -> None:
    """The admin's permissions are those that the model defines."""
    meta = IdempotencyRecord._meta
    names = [f"{action}_{meta.model_name}" for action in meta.default_permissions]
    names += [name for name, _title in meta.permissions]
    rows = [code(row["permission"]) for row in table("permission", "what it allows")]
    assert rows == [f"{meta.app_label}.{name}" for name in names]
    assert SEE_BODY in rows


def test_request_idempotency() -> None:
    """One page names what a handler can read of its protection."""
    (sentence,) = re.findall(
        r"`request\.idempotency`, key or not: (.*)", DOCUMENTS["docs/settings.md"]
    )
    named = re.findall(r"`(\w+)`", sentence)
    inner = {"executing", "request", "payload"}
    inner |= {"renew_claim", "has_side_effects", "is_released", "policy", "steps"}
    inner |= {"at_commit"}
    fields = [f for f in context.RequestContext.__slots__ if f not in inner]
    assert named == [field for field in fields if not field.startswith("_")]


GLOSSARY = DOCUMENTS["docs/glossary.md"]
WORDS = {
    word
    for line in re.findall(r"^- (\*\*.+?): ", GLOSSARY, re.MULTILINE)
    for word in re.findall(r"\*\*(.+?)\*\*", line)
}


def test_glossary() -> None:
    """The glossary has the words of the vocabulary, each once."""
    assert len(re.findall(r"\*\*.+?\*\*", GLOSSARY)) == len(WORDS)
    assert {
        "idempotency key",
        "scope",
        "fingerprint",
        "record",
        "claim",
        "in progress",
        "completed",
        "abandoned",
        "status",
        "complete",
        "release",
        "replay",
        "retention",
        "expired",
        "purge",
        "lease",
        "tombstone",
        "step",
        "call",
        "resume",
        "completer",
        "erase",
    } <= WORDS


@pytest.mark.parametrize(
    "word",
    [
        "lock",
        "cache",
        "TTL",
        "deduplicate",
        "exactly once",
        "flush",
        "saga",
        "checkpoint",
    ],
)
def test_words_that_readers_search_for(word: str) -> None:
    """The glossary says what the app calls what other software calls otherwise."""
    rows = table("other software says", "here it is")
    (row,) = [row for row in rows if word in row["other software says"].split(", ")]
    here = row["here it is"]
    assert {*here.split(", ")} <= WORDS or here.startswith("[")


@pytest.mark.parametrize("name", [*DOCUMENTS])
def test_misnomers(name: str) -> None:
    """No document gives a thing a name that means another one.

    The key makes a request idempotent and is not so itself; a record has a state, and
    its response a status.
    """
    misnomers = (
        r"\bidempotent key|\bidempotence key|\bidempotency token|record's status"
    )
    assert re.findall(misnomers, DOCUMENTS[name], re.IGNORECASE) == []


def anchors(document: str) -> set[str]:
    """Return the names by which a document's headings can be linked to."""
    prose = re.sub(r"^```.*?^```", "", document, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")
        for heading in headings
    }


@pytest.mark.parametrize("name", [*DOCUMENTS])
def test_links(name: str) -> None:
    """Documents link to files and headings that exist."""
    folder = (ROOT / name).parent
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", DOCUMENTS[name], flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", prose):
        path = (folder / target if target else ROOT / name).resolve()
        assert path.exists(), target
        if anchor:
            found = DOCUMENTS[str(path.relative_to(ROOT))]
            assert anchor in anchors(found), f"{target}#{anchor}"


def test_included_parts() -> None:
    """What a page includes from another document is there, between two marks."""
    for name, document in DOCUMENTS.items():
        for source, options in re.findall(
            r"^```\{include\} (.+)\n((?::.*\n)*)", document, re.MULTILINE
        ):
            path = ((ROOT / name).parent / source).resolve()
            for mark in re.findall(r"-(?:after|before): (<!--.+-->)", options):
                found = DOCUMENTS[str(path.relative_to(ROOT))]
                assert found.count(mark) == 1, f"{name}: {mark}"


# What developers and readers are told to type, in a line of its own or amid a sentence.
TYPED = [
    command
    for name in ("CONTRIBUTING.md", "SECURITY.md", *DOCUMENTS)
    for command in re.findall(
        r"(?:`|^\$ |^    )((?:make|python -m) [^`#\n]+)",
        (ROOT / name).read_text(encoding="utf-8"),
        re.MULTILINE,
    )
]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def module_of(target: str) -> str:
    """Return the module that a target of the Makefile hands its ARGS to."""
    (recipe,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    (module,) = re.findall(r"python -m ([\w.]+).* \$\(ARGS\)", recipe)
    return str(module)


def calls_with_options() -> Iterator[tuple[str, ...]]:
    """Yield the project's own modules with the options that they are called with."""
    for command in TYPED:
        program, *arguments = shlex.split(command)
        if program == "make":
            target, *variables = arguments
            values = [v.removeprefix("ARGS=") for v in variables if "ARGS=" in v]
            arguments = [module_of(target), *shlex.split(values[0])] if values else []
        else:
            arguments = arguments[1:]
        if "--" in arguments:
            arguments = arguments[: arguments.index("--")]
        if len(arguments) > 1 and (ROOT / arguments[0].partition(".")[0]).is_dir():
            yield tuple(arguments)


def test_named_tests() -> None:
    """Each file of tests that a document names exists."""
    named = {
        path
        for document in DOCUMENTS.values()
        for path in re.findall(r"`(tests/[\w/]+\.py)`", document)
    }
    assert "tests/test_contract.py" in named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_development_targets() -> None:
    """Documents name targets that the Makefile has; CONTRIBUTING names them all."""
    targets = {*re.findall(r"^(\w+):.*##", MAKEFILE, re.MULTILINE)}
    for command in TYPED:
        program, target, *_ = shlex.split(command)
        assert program != "make" or target in targets, command
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\$ make (\w+)", contributing, re.MULTILINE)
    parts = {"help", "clean", "format", "style", "types", "imports", "migrations"}
    assert targets - parts == {*listed}


@once
@pytest.mark.parametrize("call", sorted({*calls_with_options()}), ids=" ".join)
def test_options_of_commands(call: tuple[str, ...]) -> None:
    """Each option that the documents call a module with exists, and takes the value."""
    done = subprocess.run(
        [sys.executable, "-m", *call, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    options = [each.partition("=")[0] for each in call if each.startswith("-")]
    known = {*re.findall(r"(?<![\w-])--?\w[\w-]*", done.stdout)}
    assert {*options} <= known


def test_where_a_change_goes() -> None:
    """No usual change needs more than four files, and what it names is there."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = table("change", "files", document=contributing)
    assert len(rows) == 12
    for row in rows:
        assert len(row["files"].split(", ")) <= 4
        for path in re.findall(r"`([^`]+)`", row["files"]):
            assert (ROOT / path).exists(), path


def test_extras() -> None:
    """Each extra that the documents install is one of the package's."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    known = {*config["options.extras_require"]}
    named = [
        extra
        for command in TYPED
        for extras in re.findall(r"\.\[([\w,]+)\]", command)
        for extra in extras.split(",")
    ]
    assert "mariadb" in named
    assert {*named} <= known


def test_the_client_posts() -> None:
    """The sample for clients sends a POST, with a key that outlives the attempt."""
    (sample,) = re.findall(r"```javascript\n(.*?)```", README, re.DOTALL)
    assert "axios.post(" in sample
    assert get_settings().QUERY_PARAM in sample
    assert sample.index("randomUUID") < sample.index("axios.post(")


COMMANDS = [
    line.removeprefix("$ ").partition("  #")[0].strip()
    for code in blocks("console")
    for line in code.splitlines()
    if line.startswith("$ ")
]


@pytest.mark.parametrize("command", [c for c in COMMANDS if " manage.py " in c])
def test_management_commands(command: str) -> None:
    """Every command of manage.py in the documents exists, with its options."""
    _environment, _, arguments = command.partition(" | ")[0].partition(" manage.py ")
    name, *options = shlex.split(arguments)
    found = get_commands()
    if name == "createsuperuser":
        found = {**found, name: "django.contrib.auth"}
    assert name in found, command
    # A recipe names databases of its own, and some commands know only those there are.
    options = ["default" if option == "ledger" else option for option in options]
    parser = load_command_class(found[name], name).create_parser("manage.py", name)
    parser.parse_args(options)


@pytest.mark.parametrize(
    "module",
    sorted({*re.findall(r"python -m ([\w.]+)", "\n".join(DOCUMENTS.values()))}),
)
def test_modules(module: str) -> None:
    """Every module that the documents run exists."""
    assert find_spec(module) is not None


# The samples' Python


@pytest.mark.parametrize("source", blocks("python", *SAMPLES))
def test_samples_name_their_file(source: str) -> None:
    """Each sample says which file of a project it is for."""
    assert re.match(r"# \w+\.py\b", source)


@pytest.mark.parametrize("source", blocks("python"))
def test_python_compiles(source: str) -> None:
    """All Python in the documents compiles."""
    compile(source, "sample", "exec")


def test_settings_samples(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project that takes the samples' settings passes the checks (P3, X2)."""
    monkeypatch.setenv("IDEMPOTENCY_KEYS", new_entry())
    wanted: dict[str, Any] = {
        "BASE_DIR": ROOT,
        "INSTALLED_APPS": [],
        "MIDDLEWARE": [],
    }
    for source in block("settings.py"):
        wanted |= {k: v for k, v in run(source, **wanted).items() if k.isupper()}
    assert wanted["INSTALLED_APPS"] == ["rest_framework", "idempotency"]
    assert wanted["MIDDLEWARE"] == settings.MIDDLEWARE
    assert wanted["DATABASES"]["default"]["OPTIONS"]["transaction_mode"] == "IMMEDIATE"
    settings.IDEMPOTENCY = wanted["IDEMPOTENCY"]
    settings.CELERY_BEAT_SCHEDULE = wanted["CELERY_BEAT_SCHEDULE"]
    tasks = [entry["task"] for entry in settings.CELERY_BEAT_SCHEDULE.values()]
    assert tasks == [PURGE_TASK]
    assert run_checks(tags=["idempotency"]) == []


@pytest.mark.usefixtures("atomic_requests")
def test_decorator_sample() -> None:
    """The sample's function acts once and replays."""
    view = create_assignment()
    key = {"Idempotency-Key": KEY}
    answers = [
        view(APIRequestFactory().post("/", {"title": "Essay"}, headers=key))
        for _attempt in range(2)
    ]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].content == answers[1].content
    assert answers[1][REPLAYED_HEADER] == "true"
    assert answers[0].data == answers[1].data
    assert Effect.objects.count() == 1


@pytest.mark.usefixtures("database")
def test_mixin_sample() -> None:
    """The sample's view set protects creation and leaves its search alone."""
    (view_set,) = [v["AssignmentViewSet"] for v in views() if "AssignmentViewSet" in v]
    key = {"Idempotency-Key": KEY}
    for action, expected in (("create", [201, 201]), ("search", [200, 200])):
        view = view_set.as_view({"post": action})
        answers = [
            view(APIRequestFactory().post("/", {"note": "x"}, headers=key))
            for _attempt in range(2)
        ]
        assert [answer.status_code for answer in answers] == expected
        assert (REPLAYED_HEADER in answers[1].headers) is (action == "create")
    assert Effect.objects.count() == 1


def test_exception_handler_sample(settings: Any, client: Any, database: None) -> None:
    """The sample's exception handler shows code and message (X1)."""
    (source,) = block("exceptions.py")
    settings.REST_FRAMEWORK = {
        **settings.REST_FRAMEWORK,
        "EXCEPTION_HANDLER": run(source)["exception_handler"],
    }
    answer = client.post("/function/?$idempotency=", {})
    assert answer.status_code == 400
    assert answer.json()["code"] == "idempotency_key_invalid"
    assert answer.json()["detail"] == exceptions.KeyInvalid.default_detail


@pytest.mark.usefixtures("atomic_requests")
def test_sample_for_the_readers_tests() -> None:
    """The sample's test passes in a TestCase, whatever ATOMIC_REQUESTS is (E2)."""
    (source,) = block("tests.py")
    names = {"Assignment": Assignment, "create_assignment": create_assignment()}
    run_case(run(source, **names)["CreateAssignmentTests"])


def run_case(case: type[TestCase]) -> None:
    """Run a TestCase as a test runner does."""
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.testsRun == 1
    assert result.wasSuccessful(), result.errors + result.failures


def refuse(request: Any) -> Any:
    raise ValidationError("no")


def fail(request: Any) -> Any:
    raise ZeroDivisionError


@pytest.mark.parametrize("handler", [refuse, fail])
@pytest.mark.parametrize("has_own_transaction", [False, True])
def test_what_the_readers_tests_need(
    handler: Callable[[Any], Any],
    has_own_transaction: bool,
    atomic_requests: bool,
    handle: Callable[[Any], None],
) -> None:
    """A refusal poisons a TestCase where a direct call joins its transaction (E2)."""
    from tests.app.views import function  # noqa: PLC0415  # a view, not a test's name

    handle(handler)
    poisoned = []

    class Case(TestCase):
        def test_handler(self) -> None:
            key = {"Idempotency-Key": KEY}
            request = APIRequestFactory().post("/", {}, headers=key)
            try:
                if has_own_transaction:
                    with transaction.atomic():
                        function(request)
                else:
                    function(request)
            except ZeroDivisionError:
                pass
            try:
                Effect.objects.count()
            except TransactionManagementError:
                poisoned.append(True)

    run_case(Case)
    is_marked = handler is refuse  # by Django REST framework, when it answers
    assert bool(poisoned) is (atomic_requests and is_marked and not has_own_transaction)


def test_decisions_sample() -> None:
    """The documented ways to decide about an abandoned record exist (E9)."""
    for said in ("record.resolve(response)", "record.release()", "objects.abandoned()"):
        assert f"{said}`" in DOCUMENTS["docs/codes.md"]
        name = said.partition("(")[0].split(".")[-1]
        owner = IdempotencyRecord.objects if "objects" in said else IdempotencyRecord
        assert callable(getattr(owner, name))


@pytest.mark.django_db
def test_erasure_sample(django_capture_on_commit_callbacks: Any) -> None:
    """P4: With a user goes what records say of them, and of nobody else."""
    (source,) = block("erasure.py")
    users = [User.objects.create_user(name) for name in ("ada", "grace")]
    for user in users:
        client = APIClient()
        client.force_authenticate(user)
        client.post("/function/", {}, headers={"Idempotency-Key": "of-each-user"})
    receiver = run(source)["erase_records"]
    try:
        with django_capture_on_commit_callbacks(execute=True):
            users[0].delete()
    finally:
        post_delete.disconnect(receiver, User)
    scopes = {*IdempotencyRecord.objects.values_list("scope", flat=True)}
    assert scopes == {"", f"user:auth.user:{users[1].pk}"}


@pytest.mark.django_db
def test_encryption_sample() -> None:
    """P5: The sample says whether a key can go."""
    (source,) = block("retired_keys.py")
    is_in_use = run(source)["is_in_use"]
    entry = new_entry()
    make_record(encrypted_by=None)
    assert not is_in_use(entry[:8])
    with override_settings(IDEMPOTENCY={"ENCRYPTION_KEYS": [entry]}):
        make_record(encrypted_by=entry[:8])
    assert is_in_use(entry[:8])


@pytest.mark.django_db
def test_what_is_stored(handle: Callable[[Any], None]) -> None:
    """F5, R2: Of caller, request and answer a row has what the page says, no more."""

    def answer(request: Any) -> Response:
        found = Response({"said": "answer-body"}, headers={"X-Kept": "answer-header"})
        found.set_cookie("session", "answer-cookie")
        return found

    handle(answer)
    user = User.objects.create_user("caller-name", email="caller@example.com")
    client = APIClient()
    client.force_authenticate(user)
    client.cookies["session"] = "request-cookie"
    client.post(
        "/function/?q=request-query",
        {"text": "request-body"},
        headers={
            "Idempotency-Key": "request-key",
            "Authorization": "request-credentials",
            "X-Note": "request-header",
        },
        REMOTE_ADDR="192.0.2.77",
    )
    (row,) = IdempotencyRecord.objects.values()
    stored = repr(row)
    for kept in ("request-key", "/function/", "POST", f"auth.user:{user.pk}"):
        assert kept in stored
    for kept in ("answer-body", "answer-header", "200"):
        assert kept in stored
    for other in ("caller", "192.0.2.77", "request-query", "request-body"):
        assert other not in stored
    for other in ("credentials", "request-header", "cookie", "session"):
        assert other not in stored
