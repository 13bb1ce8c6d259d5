"""A definition has one fingerprint in every process."""

from itertools import permutations

import pytest
from django.db import connection

from matviews.queryset import plan_of
from matviews.queryset.analysis.fingerprint import fingerprint
from matviews.registry import registry
from tests.shapes.models import JsonText

pytestmark = [pytest.mark.database, pytest.mark.django_db]


@pytest.mark.only_on("sqlite", reason="others have no such types")
def test_the_types_of_json_values_may_come_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for order in permutations(["null", "false", "true"]):
        monkeypatch.setattr(connection.ops, "jsonfield_datatype_values", order)
        source = plan_of(registry.find(JsonText), connection.alias).source
        sql, _params = source.query.compile()
        assert f"'{order[0]}','{order[1]}'" in sql
        found.add(fingerprint(source))
    assert len(found) == 1
