"""A payment provider, which no transaction of the shop undoes."""

from uuid import uuid4

from django.conf import settings


def charge(amount, key=""):
    with (settings.BASE_DIR / "charges.log").open("a") as log:
        log.write(f"{amount} {key}\n")
    return str(uuid4())
