"""The forms for decisions about an abandoned record (contract A3)."""

from __future__ import annotations

import json
from typing import Any

from django import forms
from django.http import HttpResponse
from django.utils.translation import gettext_lazy as _

from idempotency.conf import get_settings
from idempotency.encryption import stored_size
from idempotency.models import IdempotencyRecord

JSON = "application/json"
# Statuses without a body (RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5).
WITHOUT_BODY = (204, 205, 304)
NOT_JSON = _("This is not valid JSON: %s")


class ResolveForm(forms.Form):
    """Status, type and body of a response; ``response()`` returns it."""

    status_code = forms.IntegerField(
        label=_("HTTP status"), min_value=200, max_value=499, initial=201
    )
    content_type = forms.CharField(
        label=_("Content-Type"), initial=JSON, max_length=255
    )
    body = forms.CharField(
        label=_("Body"),
        required=False,
        strip=False,
        widget=forms.Textarea(attrs={"rows": 12, "cols": 80, "spellcheck": "false"}),
        help_text=_("The body that the client gets. Lines end in a line feed."),
    )

    def clean_content_type(self) -> str:
        """Refuse characters that a header can't have."""
        value: str = self.cleaned_data["content_type"]
        if not (value.isascii() and value.isprintable()):
            raise forms.ValidationError(_("Use visible ASCII characters only."))
        return value

    def clean_body(self) -> str:
        """Undo the CRLF that browsers send for each line break."""
        body: str = self.cleaned_data["body"]
        return body.replace("\r\n", "\n")

    def clean(self) -> dict[str, Any]:
        """Refuse a body that does not fit the status, the type or the size limit."""
        cleaned: dict[str, Any] = super().clean() or {}
        body, kind = cleaned.get("body"), cleaned.get("content_type")
        if not body or kind is None:
            return cleaned
        if cleaned.get("status_code") in WITHOUT_BODY:
            self.add_error("body", _("A response with this status has no body."))
        if kind.split(";")[0].strip().lower() == JSON:
            try:
                json.loads(body)
            except (ValueError, RecursionError) as error:
                self.add_error("body", NOT_JSON % error)
        try:
            size = stored_size(len(HttpResponse(body, content_type=kind).content))
        except (UnicodeError, LookupError) as error:
            charset = _("The body can't be encoded in this charset: %s")
            self.add_error("content_type", charset % error)
            return cleaned
        most = get_settings().MAX_RESPONSE_BYTES
        if size > most:
            too_long = _(
                "A stored response has at most %(most)d bytes (MAX_RESPONSE_BYTES); "
                "this one has %(size)d."
            )
            self.add_error("body", too_long % {"most": most, "size": size})
        return cleaned

    def response(self) -> HttpResponse:
        """Return the response to store."""
        return HttpResponse(
            self.cleaned_data["body"],
            status=self.cleaned_data["status_code"],
            content_type=self.cleaned_data["content_type"],
        )


class ReleaseForm(forms.Form):
    """Why a key is released."""

    reason = forms.CharField(
        label=_("Reason"),
        max_length=500,
        widget=forms.TextInput(attrs={"size": 60}),
        help_text=_(
            "The admin's log keeps it with the record's status, size and times. Enter "
            "no keys and no personal data."
        ),
    )


class CallForm(forms.Form):
    """How a call in doubt has ended; ``settle()`` records it (E13)."""

    RETURNED, NEVER = "returned", "never"

    outcome = forms.ChoiceField(
        label=_("What happened?"),
        choices=(
            (RETURNED, _("It returned this result:")),
            (NEVER, _("It never happened: the next run makes the call.")),
        ),
        widget=forms.RadioSelect,
    )
    result = forms.CharField(
        label=_("Result"),
        required=False,
        widget=forms.Textarea(attrs={"rows": 8, "cols": 80, "spellcheck": "false"}),
        help_text=_("As JSON, in the form that the handler gets from the call."),
    )

    def clean(self) -> dict[str, Any]:
        """Refuse a result that is not JSON, is missing, or contradicts the outcome."""
        cleaned: dict[str, Any] = super().clean() or {}
        outcome, text = cleaned.get("outcome"), cleaned.get("result", "")
        if outcome == self.NEVER and text:
            self.add_error("result", _("A call that never happened has no result."))
        elif outcome == self.RETURNED:
            try:
                cleaned["result"] = json.loads(text, parse_constant=_refuse)
            except (ValueError, RecursionError) as error:
                self.add_error("result", NOT_JSON % error)
        return cleaned

    def settle(self, record: IdempotencyRecord, name: str) -> bool:
        """Record the outcome; return False, with an error, if the result is refused.

        Raise ``RecordChanged`` if the record is no longer as it was read.
        """
        if self.cleaned_data["outcome"] == self.NEVER:
            record.call_never_happened(name)
            return True
        try:
            record.call_returned(name, self.cleaned_data["result"])
        except (TypeError, ValueError) as error:
            self.add_error("result", str(error))
            return False
        return True


def _refuse(constant: str) -> Any:
    """Refuse NaN and the infinities, which Python's parser takes."""
    raise ValueError(constant)
