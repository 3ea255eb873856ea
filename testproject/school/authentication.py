"""``Authorization: Bearer <token>``."""

from __future__ import annotations

from rest_framework.authentication import TokenAuthentication


class BearerAuthentication(TokenAuthentication):
    """DRF's token authentication with the keyword ``Bearer``."""

    keyword = "Bearer"
