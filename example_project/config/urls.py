from django.contrib import admin
from django.http import HttpResponse
from django.urls import path
from django.views.generic import RedirectView

from matviews.health import health

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    # Browsers ask for it, and would note its absence as an error.
    path("favicon.ico", lambda _: HttpResponse(status=204)),
    path("admin/", admin.site.urls),
    path("health/", health),
]
