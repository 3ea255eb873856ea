"""A URL for each view."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path
from rest_framework.generics import CreateAPIView

from idempotency.routing import protected
from tests.app import views
from tests.app.models import Effect

MIXIN_VIEW_SET = views.MixinViewSet
EFFECTS = Effect.objects.all()
CREATE = CreateAPIView.as_view(
    queryset=EFFECTS, serializer_class=views.EffectSerializer
)
CREATE_AND_MEET = CreateAPIView.as_view(
    queryset=EFFECTS, serializer_class=views.MeetingSerializer
)

urlpatterns = [
    path("admin/", admin.site.urls),
    path("api/v2/user/", include("testproject.school.urls")),
    path("mixin-view/", views.MixinView.as_view()),
    path("mixin-viewset/", MIXIN_VIEW_SET.as_view({"post": "create", "get": "list"})),
    path("mixin-viewset/extra/", MIXIN_VIEW_SET.as_view({"post": "extra"})),
    path("mixin-viewset/search/", MIXIN_VIEW_SET.as_view({"post": "search"})),
    path("mixin-viewset/strict/", MIXIN_VIEW_SET.as_view({"post": "strict"})),
    path("function/", views.function),
    path("method/", views.MethodView.as_view()),
    path("action/", views.ActionViewSet.as_view({"post": "act"})),
    path("unprotected/", views.unprotected),
    path(
        "routed/",
        include(
            protected(
                [
                    path("view/", views.PlainView.as_view()),
                    path("viewset/", views.PlainViewSet.as_view({"post": "create"})),
                    path("function/", views.unprotected),
                    path("create/", CREATE),
                    path("rendezvous/", CREATE_AND_MEET),
                ]
            )
        ),
    ),
    path(
        "routed/leased/",
        include(
            protected(
                [path("rendezvous/", CREATE_AND_MEET)],
                atomic=False,
                on_abandoned="hold",
            )
        ),
    ),
    path("plain/function/", views.plain_function),
    path("plain/rendezvous/", views.plain_rendezvous),
    path("plain/leased/rendezvous/", views.leased_plain_rendezvous),
    path("plain/view/", views.with_user(views.PlainDjangoView.as_view())),
    path("plain/method/", views.with_user(views.PlainMethodView.as_view())),
    path("required/", views.required),
    path("waiting/", views.waiting),
    path("rendezvous/", views.rendezvous),
    path("patient-rendezvous/", views.patient_rendezvous),
    path("resuming/rendezvous/", views.resuming_rendezvous),
]
