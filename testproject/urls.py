"""The demo project's URLs."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.staticfiles.urls import staticfiles_urlpatterns
from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

from testproject.school.views import RideView

urlpatterns = [
    path("admin/", admin.site.urls),
    path("api/schema", SpectacularAPIView.as_view(), name="schema"),
    path("api/docs", SpectacularSwaggerView.as_view(), name="docs"),
    # Not in the app's URLs, because tests that include them schedule no completers.
    path("api/v2/user/rides", RideView.as_view(), name="rides"),
    path("api/v2/user/", include("testproject.school.urls")),
    # gunicorn does not serve static files. Empty without DEBUG.
    *staticfiles_urlpatterns(),
]
