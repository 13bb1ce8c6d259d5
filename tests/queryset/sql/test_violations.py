"""What a refresh says of a row of `source()` that breaks a constraint: which, and what to do."""

# ruff: noqa: N806 - variables that are models

from typing import Any

import pytest
from django.db import DatabaseError, connection, models
from django.db.models import Count, F, Q, Sum
from django.db.models.functions import Lower
from django.test import override_settings

from matviews import engine
from matviews.databases import ConstraintKind, Violation, errors_of
from matviews.models import ParkedKey, Refresh
from matviews.queryset import check_source
from matviews.registry import registry
from matviews.states import RefreshState
from tests.helpers import tables, view_classes

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
    pytest.mark.database,
]

SECRET = "31415926"  # a value of a row, which no error may show


def rows() -> type[Any]:
    return tables.model(
        "Rows",
        n=models.IntegerField(db_index=True),
        text=models.CharField(max_length=40, default=""),
    )


def error_of(view: type[Any]) -> str:
    """What a refresh says by phase: of a phase that failed, or of the keys that it has parked."""
    with override_settings(MATVIEWS={"VALUES_IN_ERRORS": "none"}):
        refresh: Refresh = view_classes.run(view)
    parked = [f"{row.phase}: {row.message}" for row in ParkedKey.objects.all()]
    assert parked or refresh.state == RefreshState.FAILED
    told = "\n".join([refresh.error, *parked])
    assert SECRET not in told
    return told


@pytest.mark.only_on("mariadb", reason="others name no column")
def test_a_number_out_of_range_is_told_with_its_column() -> None:
    Rows = rows()
    view = tables.derived_view(
        lambda cls: Rows.objects.values(ref=F("pk"), large=F("n") * 1_000_000),
        ref=tables.key(),
        large=models.IntegerField(),
    )
    with tables.made(Rows, view):
        Rows.objects.create(pk=1, n=31415926)
        assert error_of(view).strip() == (
            "insert: RowRefused: A value of source() does not fit column large of shapes.Made: "
            "give the field a type that holds it, or change the value in source()."
        )
        assert ParkedKey.objects.get().columns == ["large"]


@pytest.mark.only_on("mariadb", reason="others name no column")
@pytest.mark.parametrize(
    ("column", "value"),
    [("number", 3_000_000_000), ("choice", "it's `else`"), ("number", "it's `no` number")],
)
def test_the_column_that_a_value_does_not_fit_is_known(column: str, value: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = 'STRICT_ALL_TABLES'")
        cursor.execute("CREATE TEMPORARY TABLE unfit (number INT, choice ENUM('x'))")
        with pytest.raises(DatabaseError) as error:
            cursor.execute(f"INSERT INTO unfit ({column}) SELECT %s", [value])
        cursor.execute("DROP TEMPORARY TABLE unfit")
        cursor.execute("SET SESSION sql_mode = DEFAULT")
    found = errors_of("default").violation(error.value)
    assert found == Violation(ConstraintKind.UNFIT, columns=(column,))


@pytest.mark.only_on("postgres", "mariadb", reason="on SQLite a text may have any length")
@pytest.mark.parametrize("staged", [False, True])
def test_a_value_that_is_too_long_is_told_by_refresh_and_repair_until_it_fits(staged: bool) -> None:
    # given a row that was cut on its way in, as with MariaDB's sql_mode='' before
    Rows = rows()
    view = tables.derived_view(
        lambda cls: (
            Rows.objects.order_by("pk").values("text", ref=F("n"))[:100]
            if staged
            else Rows.objects.values("text", ref=F("pk"))
        ),
        ref=tables.key(),
        text=models.CharField(max_length=5),
    )
    with tables.made(Rows, view):
        row = Rows.objects.create(pk=1, n=1, text="abcdefgh")
        view.objects.create(ref=1, text="abcde")
        # when it is compared, then it differs; and each write says which value does not fit
        assert view.verify().differing == 1
        with pytest.raises(DatabaseError, match=r"A value of source\(\) is too long for") as error:
            view.verify(repair=True)
        assert "increase the field's max_length" in str(error.value)
        assert "A value of source() is too long for" in error_of(view)
        # and once it fits, it is repaired
        Rows.objects.filter(pk=row.pk).update(text="short")
        assert view_classes.run(view).state == RefreshState.SUCCEEDED
        assert view.verify().equal


def test_two_rows_with_one_key_in_a_staged_source() -> None:
    Rows = rows()
    view = tables.derived_view(
        lambda cls: Rows.objects.order_by("pk").values("text", ref=F("n"))[:100],
        ref=tables.key(),
        text=models.CharField(max_length=40),
    )
    with tables.made(Rows, view):
        Rows.objects.bulk_create([Rows(n=int(SECRET), text=text) for text in "ab"])
        assert "Two rows of source() have the same key (ref)" in error_of(view)


def test_null_in_a_staging_table_names_the_column() -> None:
    Rows = rows()
    view = tables.derived_view(
        lambda cls: Rows.objects.order_by("pk").values(
            ref=F("pk"), total=Sum("n", filter=Q(n__gt=99_999_999))
        )[:100],
        ref=tables.key(),
        total=models.IntegerField(),
    )
    with tables.made(Rows, view):
        Rows.objects.create(n=int(SECRET))
        error = error_of(view)
        assert "Column total of shapes.Made is NULL, but the field is NOT NULL" in error
        assert "default=0" in error
        assert "null=True" in error


def grouped() -> tuple[type[Any], type[Any]]:
    Rows = rows()
    view = tables.derived_view(
        lambda cls: Rows.objects.values(ref=F("n")).annotate(
            total=Sum("pk", filter=Q(text="counts"))
        ),
        ref=tables.key(),
        total=models.BigIntegerField(db_column="sum of all"),
    )
    return Rows, view


def test_null_into_not_null_names_the_column_where_a_row_is_new_and_where_it_changes() -> None:
    Rows, view = grouped()
    with tables.made(Rows, view):
        Rows.objects.create(n=int(SECRET), text="counts")
        assert view_classes.run(view).state == RefreshState.SUCCEEDED
        Rows.objects.update(text="no more")
        assert "update: RowRefused: Column total of shapes.Made is NULL" in error_of(view)
        view.objects.all().delete()
        assert "insert: RowRefused: Column total of shapes.Made is NULL" in error_of(view)


def with_second_unique(**meta: Any) -> tuple[type[Any], type[Any]]:
    Rows = rows()
    view = tables.derived_view(
        lambda cls: Rows.objects.values("text", ref=F("pk")),
        key=["ref"],
        ref=tables.key(),
        text=models.CharField(max_length=40, unique=not meta),
        meta=meta,
    )
    return Rows, view


@pytest.mark.parametrize("by", ["field", "constraint"])
def test_a_second_unique_constraint_is_named_with_its_check(by: str) -> None:
    meta = {"constraints": [models.UniqueConstraint(fields=["text"], name="one_text")]}
    Rows, view = with_second_unique(**(meta if by == "constraint" else {}))
    with tables.made(Rows, view):
        Rows.objects.bulk_create([Rows(n=1, text=SECRET), Rows(n=2, text=SECRET)])
        error = error_of(view)
        assert "which is not the key (matviews.W008)" in error
        assert "text" in error
        if by == "constraint" and connection.vendor != "sqlite":
            assert "the constraint one_text of shapes.Made (text)" in error


@pytest.mark.only_on("postgres", reason="only PostgreSQL has deferrable constraints")
@pytest.mark.parametrize("deferrable", models.Deferrable)
def test_a_deferrable_constraint_is_no_warning_and_named_when_it_fails(
    deferrable: models.Deferrable,
) -> None:
    constraint = models.UniqueConstraint(fields=["text"], name="one_text", deferrable=deferrable)
    Rows, view = with_second_unique(constraints=[constraint])
    with tables.made(Rows, view):
        definition = registry.find(view)
        assert check_source(definition, engine.alias()) == []
        # Values that are exchanged within a batch break nothing
        Rows.objects.bulk_create([Rows(n=1, text="a"), Rows(n=2, text="b")])
        assert view_classes.run(view).state == RefreshState.SUCCEEDED
        first, second = Rows.objects.order_by("pk")
        first.text, second.text = second.text, first.text
        Rows.objects.bulk_update([first, second], ["text"])
        assert view_classes.run(view).state == RefreshState.SUCCEEDED
        # And what stays broken until the commit is told like any other
        Rows.objects.update(text=SECRET)
        assert "the constraint one_text of shapes.Made (text)" in error_of(view)
        assert "matviews.W008" in ParkedKey.objects.get(phase="update").message


@pytest.mark.parametrize("expressions", [False, True])
def test_w008_is_about_constraints_that_are_checked_at_once(expressions: bool) -> None:
    if expressions:
        constraint = models.UniqueConstraint(Lower("text"), name="one_text")
    else:
        constraint = models.UniqueConstraint(fields=["text"], name="one_text")
    _rows, view = with_second_unique(constraints=[constraint])
    found = check_source(registry.find(view), engine.alias())
    assert [each.id for each in found] == ["matviews.W008"]


def test_a_check_constraint_is_named() -> None:
    Rows = rows()
    constraint = models.CheckConstraint(condition=Q(n__lt=10), name="small")
    view = tables.derived_view(
        lambda cls: Rows.objects.values("n", ref=F("pk")),
        ref=tables.key(),
        n=models.IntegerField(),
        meta={"constraints": [constraint]},
    )
    with tables.made(Rows, view):
        Rows.objects.create(n=int(SECRET))
        assert "violates the constraint small of shapes.Made" in error_of(view)


def test_a_column_that_the_model_lacks_is_named() -> None:
    Rows = rows()
    view = tables.derived_view(
        lambda cls: Rows.objects.values(ref=F("n")).annotate(count=Count("pk")),
        ref=tables.key(),
        count=models.IntegerField(),
        late=models.IntegerField(),
    )
    with tables.made(Rows, view):
        view._meta.local_fields.remove(view._meta.get_field("late"))
        view._meta._expire_cache()
        Rows.objects.create(n=int(SECRET))
        error = error_of(view)
        assert "has a NOT NULL column late" in error
        assert "makemigrations" in error


def test_a_foreign_key_is_named_with_its_check() -> None:
    Rows = rows()
    Target = tables.model("Target")
    view = tables.derived_view(
        lambda cls: Rows.objects.values(ref=F("pk"), target=F("n")),
        ref=tables.key(),
        target=models.ForeignKey(Target, models.DO_NOTHING),
    )
    with tables.made(Rows, Target, view):
        Rows.objects.create(n=int(SECRET))
        assert "matviews.W009" in error_of(view)


def test_a_repair_that_breaks_a_constraint_says_so_too() -> None:
    Rows, view = grouped()
    with tables.made(Rows, view):
        Rows.objects.create(n=int(SECRET), text="no number")
        with pytest.raises(Exception, match=r"Column total of shapes\.Made is NULL"):
            view.verify(repair=True)


def test_an_error_of_the_phases_is_told_once_with_their_names() -> None:
    Rows = rows()
    view = tables.derived_view(
        lambda cls: Rows.objects.all(), ref=tables.key(), total=models.IntegerField()
    )
    with tables.made(Rows, view):
        refresh = view_classes.run(view)
        assert refresh.error.startswith("insert, update, delete: ")
        assert refresh.error.count("must return a queryset of columns") == 1
