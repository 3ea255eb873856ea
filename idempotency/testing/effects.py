"""Count effects of requests: rows of tables, e-mails, and what a test names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from typing import Any

from django.apps import apps
from django.core import mail
from django.db import connections, router
from django.db.models import Manager, Model, QuerySet

from idempotency.models import IdempotencyRecord
from idempotency.modes.stray_writes import project_write_in

Number = int | float | Decimal
Numbers = dict[str, Any]
# Rows to count, or a function that returns a number.
Effect = QuerySet[Any] | Manager[Any] | Callable[[], Number]
Effects = Effect | Mapping[str, Effect] | None


class Watch:
    """Counts rows of each table, e-mails in ``mail.outbox``, and a test's own effects.

    Tables are those of the project's models in each database that the test may use.
    """

    def __init__(self, effects: Effects, ignore: Collection[type[Model]]) -> None:
        self.named = effects if isinstance(effects, Mapping) else {"effects": effects}
        models = [
            model
            for model in apps.get_models(include_auto_created=True)
            if model._meta.managed and not model._meta.proxy
        ]
        self.models = [m for m in models if m not in (*ignore, IdempotencyRecord)]
        self.aliases = usable_databases()

    def count(self) -> Numbers:
        """Return the current numbers; raise ``TypeError`` if an effect is no number."""
        numbers: Numbers = {
            _label(model, alias): model._base_manager.using(alias).count()
            for alias in self.aliases
            for model in self.models
            if router.allow_migrate_model(alias, model)
        }
        if hasattr(mail, "outbox"):
            numbers["mail.outbox"] = len(mail.outbox)
        for name, effect in self.named.items():
            if effect is not None:
                numbers[name] = _number(name, effect)
        return numbers

    def changes_since(self, earlier: Numbers) -> Numbers:
        """Return the differences of the numbers that have changed."""
        now = self.count()
        changes = {name: now[name] - earlier[name] for name in now}
        return {name: change for name, change in changes.items() if change}


def usable_databases() -> list[str]:
    """Return the aliases that the test may use, except mirrors."""
    return [alias for alias in connections if _is_usable(connections[alias])]


def _is_usable(connection: Any) -> bool:
    if connection.settings_dict["TEST"]["MIRROR"]:
        return False
    try:
        with connection.cursor():
            return True
    except AssertionError:
        return False  # not among the databases of Django's test case


def _label(model: type[Model], alias: str) -> str:
    place = "" if alias == "default" else f" in {alias!r}"
    return f"{model._meta.label}{place}"


def _number(name: str, effect: Effect) -> Number:
    if isinstance(effect, (QuerySet, Manager)):
        return effect.all().count()
    number = effect()
    if not isinstance(number, Number):
        raise TypeError(
            f"The effect {name!r} must be a queryset or a function that returns a "
            f"number, not {number!r}."
        )
    return number


@contextmanager
def writes_counted() -> Iterator[Counter[str]]:
    """Count INSERT, UPDATE and other writes by table, even if they are undone."""
    counter: Counter[str] = Counter()

    def count(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        write = project_write_in(sql)
        if write is not None:
            counter[write] += 1
        return execute(sql, params, many, context)

    with ExitStack() as stack:
        for connection in connections.all():
            stack.enter_context(connection.execute_wrapper(count))
        yield counter


def beyond(once: Numbers, total: Numbers) -> Numbers:
    """Return the changes that are more than one request makes."""
    return {
        name: change
        for name, change in total.items()
        if abs(change) > abs(once.get(name, 0))
    }


def compare_changes(
    first: Numbers, by: str, again: Numbers, by_again: str
) -> Iterator[str]:
    """Yield a line for each change of the second run, with the first run's."""
    for name, change in again.items():
        yield f"{name}: {first.get(name, 0):+} by {by}, {change:+} by {by_again}"
