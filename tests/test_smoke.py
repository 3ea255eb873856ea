import pytest
from tests.app.models import Effect
from tests.conftest import KEY

pytestmark = pytest.mark.usefixtures("atomic_requests")


@pytest.mark.parametrize(
    "door", ["/mixin-view/", "/mixin-viewset/", "/function/", "/method/", "/action/"]
)
def test_replay(client, door):
    first = client.post(door + "?$idempotency=" + KEY, {"a": 1})
    second = client.post(door + "?$idempotency=" + KEY, {"a": 1})
    assert first.status_code == second.status_code == 201, first.content
    assert first.content == second.content
    assert second["Idempotent-Replayed"] == "true"
    assert first["Idempotency-Expires"] == second["Idempotency-Expires"]
    assert second["Location"] == first["Location"]
    assert Effect.objects.count() == 1
    third = client.post(door + "?$idempotency=" + KEY, {"a": 2})
    assert third.status_code == 422
    assert client.post(door, {"a": 1}).status_code == 201
    assert Effect.objects.count() == 2
