"""What the views of the shop have in common."""

from rest_framework.views import APIView

from api.models import Event


def happen(name):
    return Event.objects.create(name=name)


class EnvelopeMixin:
    """Puts the data of each response into an envelope."""

    def finalize_response(self, request, response, *args, **kwargs):
        response = super().finalize_response(request, response, *args, **kwargs)
        if not response.exception:
            response.data = {"data": response.data}
        return response


class OwnerMixin:
    """Shows users their own objects, and creates them as theirs."""

    def get_queryset(self):
        return super().get_queryset().filter(owner=self.request.user)

    def perform_create(self, serializer):
        serializer.save(owner=self.request.user)


class ShopView(APIView):
    """Sees each request before its handler, and each response after it."""

    name = None

    def initial(self, request, *args, **kwargs):
        super().initial(request, *args, **kwargs)
        self.name = self.name or type(self).__name__

    def handle_exception(self, exc):
        response = super().handle_exception(exc)
        response["X-Failed"] = type(exc).__name__
        return response


class TimedView(ShopView):
    """Has its own ``dispatch()``."""

    def dispatch(self, request, *args, **kwargs):
        response = super().dispatch(request, *args, **kwargs)
        response["X-View"] = self.name or "none"
        return response
