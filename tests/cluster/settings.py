"""The tests' settings, on databases that the environment names."""

import json
import os

from tests.settings import *  # noqa: F403
from tests.settings import REST_FRAMEWORK

DATABASES = json.loads(os.environ["CLUSTER_DATABASES"])
ROOT_URLCONF = "tests.cluster.views"
REST_FRAMEWORK = {
    **REST_FRAMEWORK,
    "EXCEPTION_HANDLER": "tests.soak.views.exception_handler",
}
