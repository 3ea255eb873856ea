"""A client of the payment provider, which supports idempotency keys itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.serializers.json import DjangoJSONEncoder
from rest_framework.exceptions import APIException

Charge = Mapping[str, Any]

CARD_DECLINED = {"code": "CARD_DECLINED", "message": "The card was declined."}


class ProviderUnreachable(APIException):
    """Nothing was sent to the provider."""

    status_code = 503
    default_detail = (
        "The payment provider can't be reached. "
        "Retry later with the same idempotency key."
    )
    default_code = "payment_provider_unreachable"
    wait = 5  # DRF sends it as Retry-After


class PaymentUnknown(APIException):
    """The provider may have charged the card, but sent no usable response."""

    status_code = 504
    default_detail = (
        "The payment provider sent no response, and may have charged the card. "
        "Retry later with the same idempotency key to find out."
    )
    default_code = "payment_unknown"
    wait = 5


def charge(payment: Mapping[str, Any], key: str) -> Charge:
    """Charge a card once for each key, and return the charge, maybe a declined one.

    Raise ``ProviderUnreachable`` or ``PaymentUnknown``.
    """
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    body = json.dumps(payment, cls=DjangoJSONEncoder)
    status, answer = _send("POST", "/charges", body, headers)
    if status not in (201, 402):
        raise PaymentUnknown
    return answer


def find_charge(key: str) -> Charge | None:
    """Return the charge of a key, or None if the provider has none.

    Raise ``ProviderUnreachable`` or ``PaymentUnknown``.
    """
    status, answer = _send("GET", f"/charges/{key}")
    if status not in (200, 404):
        raise PaymentUnknown
    return answer if status == 200 else None


def _send(
    method: str,
    path: str,
    body: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, Charge]:
    address = urlsplit(settings.PAYMENT_PROVIDER_URL)
    connection_class = HTTPSConnection if address.scheme == "https" else HTTPConnection
    timeout = settings.PAYMENT_PROVIDER_TIMEOUT
    with closing(connection_class(address.netloc, timeout=timeout)) as connection:
        # A separate step, because later failures may have reached the provider.
        try:
            connection.connect()
        except OSError as error:
            raise ProviderUnreachable from error
        try:
            connection.request(method, address.path + path, body, headers or {})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, HTTPException, ValueError) as error:
            raise PaymentUnknown from error
