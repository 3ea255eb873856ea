"""What a record's page says of the next request, and what that then gets."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client
from django.urls import path, set_script_prefix
from django.utils import timezone
from rest_framework.views import APIView

from idempotency.admin.messages import (
    ASK,
    EXPIRED,
    NEXT_RESPONSES,
    NOT_ENABLED,
    NOT_FOUND,
    OTHER_CONTENT,
    RERUN,
    next_request,
)
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord, State, Status, erased_values
from tests.app.models import Effect
from tests.conftest import code_of, key
from tests.support.admin_pages import Page, address
from tests.test_admin_actions import NO_ANSWER, make_abandoned
from tests.test_leased import Enquiry
from tests.test_leased import urlpatterns as leased_urls
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


class Shy(IdempotencyMixin, APIView):
    """Its options depend on the request."""

    def get_idempotency_options(self) -> dict[str, Any]:
        return {"required": self.request.is_strict}


urlpatterns = [*usual_urls, *leased_urls, path("shy/", Shy.as_view())]


@pytest.mark.parametrize("status", [None, *Status])
def test_next_request(staff: Client, client: Any, status: Status | None) -> None:
    """A1: The sentence says what a retry gets, which is what it then does get."""
    assert client.post("/function/", {}, **key()).status_code == 201
    record = IdempotencyRecord.objects.get()
    now = timezone.now()
    IdempotencyRecord.objects.update(
        **{
            None: {"expires_at": now - timedelta(seconds=1)},
            Status.COMPLETED: {"state": State.COMPLETED},
            Status.NOT_KEPT: {"body": None, "body_size": None},
            Status.IN_PROGRESS: {
                "state": State.IN_PROGRESS,
                "status_code": None,
                "lease_expires_at": now + timedelta(hours=1),
            },
            Status.ABANDONED: {"state": State.ABANDONED, "status_code": None},
            Status.ERASED: erased_values(),
        }[status]
    )
    page = Page(staff.get(address(record)))
    every = {None: EXPIRED, **NEXT_RESPONSES}
    sentence = every[status].format(status=201)
    assert sentence in page.text
    assert sum(s.format(status=201) in page.text for s in every.values()) == 1
    told_once = page.text.replace(sentence, "").replace(str(OTHER_CONTENT), "")
    assert "refused" not in told_once
    is_in_force = status is not None
    assert (str(OTHER_CONTENT) in page.text) is is_in_force
    if is_in_force:
        assert client.post("/function/", {"other": 1}, **key()).status_code == 422
    retry = client.post("/function/", {}, **key())
    if status is None:
        assert "runs the handler" in sentence
        assert Effect.objects.count() == 2
        return
    assert Effect.objects.count() == 1
    if status is Status.COMPLETED:
        assert "status 201" in sentence
        assert (retry.status_code, retry["Idempotent-Replayed"]) == (201, "true")
    else:
        assert f"409 {code_of(retry)}" in sentence


def test_next_request_without_the_app(
    staff: Client, client: Any, settings: Any
) -> None:
    """A1: Where the app steps aside, a retry acts, and the sentence says so."""
    client.post("/function/", {}, **key())
    settings.IDEMPOTENCY = {"ENABLED": False}
    text = Page(staff.get(address(IdempotencyRecord.objects.get()))).text
    assert str(NOT_ENABLED) in text
    assert not any(s.format(status=201) in text for s in NEXT_RESPONSES.values())
    client.post("/function/", {}, **key())
    assert Effect.objects.count() == 2


@pytest.mark.parametrize(
    ("place", "sentence", "effects"),
    [
        ("/leased/", NEXT_RESPONSES[Status.ABANDONED], 1),
        ("/function/", NEXT_RESPONSES[Status.ABANDONED], 1),
        ("/rerun/", RERUN, 2),
        ("/asking/", ASK, 1),
    ],
)
def test_who_decides_about_an_abandoned_record(
    staff: Client, client: Any, place: str, sentence: Any, effects: int
) -> None:
    """A1, E5, E9: What the endpoint says, where it is one that may say something."""
    client.post(place, {}, **key())
    lease = timezone.now() - timedelta(minutes=1)
    IdempotencyRecord.objects.update(
        state=State.ABANDONED, lease_expires_at=lease, **NO_ANSWER
    )
    text = Page(staff.get(address(IdempotencyRecord.objects.get()))).text
    said = sentence.format(function="tests.test_leased.enquire")
    assert f"{said} {OTHER_CONTENT}" in text
    assert str(NOT_FOUND) not in text
    Enquiry.answer = staticmethod(lambda record, request: HttpResponse(b"found"))
    assert client.post(place, {"other": 1}, **key()).status_code == 422
    retry = client.post(place, {}, **key())
    assert ("409 " in said) is (retry.status_code == 409)
    assert (retry.content == b"found") is (sentence is ASK)
    assert Effect.objects.count() == effects


@pytest.mark.parametrize(
    "place", ["/nowhere/", "/unprotected/", "/shy/", "no-path", "/api/v2/user/x"]
)
def test_who_decides_is_not_known(staff: Client, place: str) -> None:
    """A1: Where no endpoint can be asked, the page says so."""
    text = Page(staff.get(address(make_abandoned(path=place)))).text
    sentence = NEXT_RESPONSES[Status.ABANDONED]
    assert f"{sentence} {NOT_FOUND} {OTHER_CONTENT}" in text


def test_below_a_prefix(staff: Client) -> None:
    """A1: A project that is served below a prefix has it in its records' paths."""
    make_abandoned(path="/shop/rerun/")
    record = IdempotencyRecord.objects.with_lease_state().get()
    set_script_prefix("/shop/")
    try:
        said = next_request(record)
    finally:
        set_script_prefix("/")
    assert said == f"{RERUN} {OTHER_CONTENT}"
