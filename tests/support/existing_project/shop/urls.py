from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("api/", include("api.urls")),
    path("auth/", include("dj_rest_auth.urls")),
    path("", include("pages.urls")),
]
