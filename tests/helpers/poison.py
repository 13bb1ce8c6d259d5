"""A source of which some rows can be computed or written, and others not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection, models
from django.db.models import F, Func, Max, Q, Value
from django.db.models.functions import Abs, Cast

from matviews import changes, engine
from matviews.models import ParkedKey, Refresh
from matviews.states import RefreshState
from tests.helpers import view_classes
from tests.helpers.tables import derived_view, made, model

__all__ = ["KINDS", "WRITTEN", "Poisoned"]

ON_SQLITE = connection.vendor == "sqlite"
HEALTHY: dict[str, Any] = {
    "number": 1, "divisor": 1, "text": "1", "word": "a", "required": 1, "sign": 1,
}  # fmt: skip
#: What makes a row one that fails, by kind; `second` has the value of another row.
POISON: dict[str, dict[str, Any]] = {
    "division": {"divisor": 0},
    "overflow": {"number": 2**31 - 1000},
    "too long": {"word": "abcdefgh"},
    "null": {"required": None},
    "unique": {"second": 1},
    "cast": {"text": "none"},
    "check": {"sign": -1},
}
if ON_SQLITE:
    POISON["overflow"] = {"number": -(2**63)}
# SQLite gives NULL for a division by zero, takes any text for a number, and checks no lengths. But
# it refuses some computations: there, `overflow` and `cast` are ABS(-2^63) and malformed JSON.
WRITTEN = ["null", "unique", "check"]  # only the table refuses these
if not ON_SQLITE:
    WRITTEN += ["overflow", "too long"]
KINDS = [kind for kind in POISON if not (ON_SQLITE and kind in ("division", "too long"))]


class Poisoned:
    """A source with the key k, and a view of it, which has a column for each kind of poison.

    Args:
        staged: whether no index serves the key, and rows are groups.
        whole: makes the query one that cannot be computed for some keys alone. Then nothing is too
            large while it is computed.
        options: more of the view's `MatviewMeta`.
        fields: more of the view's fields, for columns that `whole` adds.
    """

    def __init__(
        self,
        *,
        staged: bool = False,
        whole: Callable[[Any], Any] | None = None,
        options: dict[str, Any] | None = None,
        fields: dict[str, Any] | None = None,
    ) -> None:
        self.Row = row = model(
            "Row",
            k=models.BigIntegerField(unique=not staged),
            number=models.IntegerField(),
            divisor=models.IntegerField(),
            text=models.CharField(max_length=20),
            word=models.CharField(max_length=20),
            required=models.IntegerField(null=True),
            second=models.BigIntegerField(),
            sign=models.IntegerField(),
        )

        def read(name: str) -> Any:
            return Max(name) if staged else F(name)

        number, text = read("number"), read("text")
        if whole:
            number = Cast(number, models.BigIntegerField())
        if ON_SQLITE:
            number = Abs(number)
            text = Func(text, Value("$"), function="JSON_EXTRACT", output_field=models.TextField())
        columns = {
            "quotient": read("number") / read("divisor"),
            "double": number * 2,
            "whole": Cast(text, models.IntegerField()),
            "short": read("word"),
            "needed": read("required"),
            "single": read("second"),
            "positive": read("sign"),
        }
        self.View = derived_view(
            lambda cls: (whole or (lambda rows: rows))(
                row._base_manager.values(ref=F("k")).annotate(**columns)
                if staged
                else row._base_manager.values(ref=F("k"), **columns)
            ),
            key=["ref"],
            options=options,
            ref=models.BigIntegerField(unique=True),
            quotient=models.IntegerField(null=True),
            double=models.IntegerField(null=True),
            whole=models.IntegerField(null=True),
            short=models.CharField(max_length=5),
            needed=models.IntegerField(),
            single=models.BigIntegerField(unique=True),
            positive=models.IntegerField(),
            **(fields or {}),
            meta={
                "constraints": [
                    models.CheckConstraint(condition=Q(positive__gte=0), name="made_positive")
                ]
            },
        )

    @contextmanager
    def ready(self, *, tracked: bool = True) -> Iterator[None]:
        """The tables are there until the end, with triggers if changes are tracked."""
        with made(self.Row, self.View):
            if tracked:
                changes.install(engine.alias())
            try:
                yield
            finally:
                changes.remove(engine.alias())

    def fill(self, count: int) -> None:
        """Rows with the keys 1 to `count`, all healthy."""
        self.add(*range(1, count + 1))

    def add(self, *keys: int) -> None:
        """Healthy rows with these keys."""
        self.Row.objects.bulk_create(
            [self.Row(k=key, second=key, **HEALTHY) for key in keys], batch_size=2_000
        )

    def poison(self, kind: str, *keys: int) -> None:
        """Make rows fail."""
        self.Row.objects.filter(k__in=keys).update(**POISON[kind])

    def heal(self, *keys: int) -> None:
        """Make rows healthy again."""
        self.Row.objects.filter(k__in=keys).update(**HEALTHY, second=F("k"))

    def change(self, *keys: int) -> None:
        """Give rows another value, which heals none."""
        self.Row.objects.filter(k__in=keys, number__gte=0).update(number=F("number") + 1)

    def refresh(self, **request: Any) -> Refresh:
        """Refresh the view, which succeeds."""
        refresh = view_classes.run(self.View, **request)
        assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, ""), refresh.error
        return refresh

    def failed(self, **request: Any) -> Refresh:
        """Refresh the view, which fails."""
        refresh = view_classes.run(self.View, **request)
        assert refresh.state == RefreshState.FAILED
        return refresh

    def parked(self) -> set[int]:
        """The keys that are parked."""
        return {key for [key] in ParkedKey.objects.values_list("key", flat=True)}

    def right(self) -> set[int]:
        """The keys of the view whose rows are those of the source."""
        names = ("number", "word", "required", "second", "sign")
        of_source = {
            key: (number * 2, *others)
            for key, number, *others in self.Row.objects.values_list("k", *names)
        }
        columns = ("double", "short", "needed", "single", "positive")
        of_view = self.View.objects.values_list("ref", *columns)
        return {key for key, *values in of_view if of_source.get(key) == tuple(values)}
