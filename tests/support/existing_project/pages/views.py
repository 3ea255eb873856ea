import json

from django import forms
from django.contrib.auth.decorators import login_required
from django.contrib.auth.mixins import LoginRequiredMixin
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from django.views.generic import FormView

from api.bases import happen


class CheckoutForm(forms.Form):
    address = forms.CharField()


class CheckoutView(LoginRequiredMixin, FormView):
    form_class = CheckoutForm
    template_name = "checkout.html"
    success_url = "/"

    def form_valid(self, form):
        happen("checked out")
        return super().form_valid(form)


@login_required
@require_POST
def subscribe(request):
    happen("subscribed")
    return redirect("home")


@csrf_exempt
@require_POST
def webhook(request):
    happen(f"webhook {json.loads(request.body)['id']}")
    return JsonResponse({"ok": True})


def home(request):
    return HttpResponse("Welcome to the shop.")
