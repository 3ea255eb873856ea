"""The demo project's own tests, with the kit that every project has."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch
from uuid import uuid4

from django.contrib.auth.models import User
from rest_framework.test import APITestCase, APITransactionTestCase

from idempotency.testing import assert_idempotent, assert_race_safe
from testproject.school import provider
from testproject.school.models import Assignment, SchoolClass


class School:
    """A teacher with a class, logged in."""

    client: Any

    def setUp(self) -> None:
        teacher = User.objects.create_user("ada")
        school_class = SchoolClass.objects.create(name="Algebra", teacher=teacher)
        self.url = f"/api/v2/user/classes/{school_class.pk}/assignments"
        self.client.force_authenticate(teacher)


class TestAssignments(School, APITestCase):
    def test_created_once(self) -> None:
        """E1, R2: A retry creates no second assignment."""
        for key_in in ("header", "query"):
            assert_idempotent(
                self.client, "post", self.url, {"title": "Essay"}, key_in=key_in
            )
        assert Assignment.objects.count() == 2


class Provider:
    """Charges once for each key, as providers do."""

    def __init__(self) -> None:
        self.charges: dict[str, provider.Charge] = {}

    def charge(self, payment: Any, key: str) -> provider.Charge:
        made: Any = {"id": str(uuid4()), "status": "paid", **payment}
        return self.charges.setdefault(key, made)

    def find_charge(self, key: str) -> provider.Charge | None:
        return self.charges.get(key)


class TestPayments(School, APITestCase):
    def test_charged_once(self) -> None:
        """E9, E10: Neither a duplicate nor a retry after an error charges again."""
        stub = Provider()
        with (
            patch.object(provider, "charge", stub.charge),
            patch.object(provider, "find_charge", stub.find_charge),
        ):
            assert_idempotent(
                self.client,
                "post",
                "/api/v2/user/payments",
                {
                    "amount": "12.50",
                    "currency": "EUR",
                    "card": "tok_1",
                    "reference": "trip",
                },
                effects=lambda: len(stub.charges),
            )
        assert len(stub.charges) == 2


class TestRaces(School, APITransactionTestCase):
    def test_created_once_at_once(self) -> None:
        """E3: Of duplicates at once one creates."""
        assert_race_safe(self.client, "post", self.url, {"title": "Essay"})
        assert Assignment.objects.count() == 2
