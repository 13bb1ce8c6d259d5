"""Settings for mypy's Django plugin alone: the tests', and the apps of example and benchmark."""

import sys
from pathlib import Path

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS

sys.path.insert(0, str(Path(__file__).parent.parent / "example_project"))
INSTALLED_APPS += ["flights", "benchmarks", "tests.chaos"]
