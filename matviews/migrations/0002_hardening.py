from datetime import UTC
from secrets import token_hex
from typing import Any

from django.db import migrations, models
from django.utils import timezone

from matviews.models import TableNameField


def keep_times_of_pending_changes(apps: Any, schema_editor: Any) -> None:
    """Carry over since when changes are pending: of all drains of a shard, the oldest."""
    using = schema_editor.connection.alias
    dirty = apps.get_model("matviews", "DirtyKeys").objects.using(using)
    for stripe in apps.get_model("matviews", "Stripe").objects.using(using).all():
        times = [*dirty.filter(stripe=stripe).values_list("logged_at", flat=True)]
        times += [stripe.whole_since] if stripe.whole_since else []
        if times:
            oldest = min(times)
            oldest = oldest if timezone.is_aware(oldest) else oldest.replace(tzinfo=UTC)
            stripe.pending = [[stripe.changes, oldest.isoformat()]]
            stripe.save(update_fields=["pending"])


def forget_dirty_keys(apps: Any, schema_editor: Any) -> None:
    """On the way back: the rows lack a time that the old column wants. Full refreshes follow anyway."""
    using = schema_editor.connection.alias
    apps.get_model("matviews", "DirtyKeys").objects.using(using).all().delete()


def drop_keys_in_their_old_form(apps: Any, schema_editor: Any) -> None:
    """Keys are kept as the database has them now: what is left of the old form becomes a full refresh."""
    using, reason = schema_editor.connection.alias, "keys were kept in another form before"
    stripes, dirty, queues, runs = (
        apps.get_model("matviews", name).objects.using(using)
        for name in ("Stripe", "DirtyKeys", "ViewChange", "PhaseRun")
    )
    for stripe in stripes.filter(pk__in=list(dirty.values_list("stripe", flat=True))):
        stripe.whole, stripe.whole_reason = stripe.changes, reason
        stripe.save(update_fields=["whole", "whole_reason"])
    dirty.all().delete()
    queues.filter(table="").update(links=reason, count=1)
    # A run whose definition is another one begins anew, and builds on nothing that was read before.
    defined = runs.filter(refresh__state="open").exclude(fingerprint="")
    defined.update(filled=[], stage="")
    defined.filter(state__in=["pending", "running"]).update(fingerprint="older keys")


class Migration(migrations.Migration):
    dependencies = [("matviews", "0001_initial")]

    operations = [
        migrations.AddField("stripe", "claims", models.BigIntegerField(default=0)),
        migrations.AddField("refresh", "claims_seen", models.BigIntegerField(null=True)),
        migrations.AddField("refresh", "requests", models.PositiveIntegerField(default=1)),
        migrations.AlterField(
            "refresh",
            "state",
            models.CharField(
                choices=[
                    ("open", "Open"),
                    ("merged", "Merged"),
                    ("succeeded", "Succeeded"),
                    ("failed", "Failed"),
                    ("stopped", "Stopped"),
                ],
                default="open",
                max_length=16,
            ),
        ),
        migrations.AddField("stripe", "pending", models.JSONField(default=list)),
        migrations.RunPython(keep_times_of_pending_changes, migrations.RunPython.noop),
        migrations.RemoveField("stripe", "whole_since"),
        migrations.RemoveField("dirtykeys", "logged_at"),
        migrations.RunPython(migrations.RunPython.noop, forget_dirty_keys),
        migrations.CreateModel(
            name="LogSecret",
            fields=[
                (
                    "id",
                    models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False),
                ),
                ("value", models.CharField(default=token_hex, max_length=64)),
            ],
            options={"default_permissions": ()},
        ),
        migrations.AddField(
            "watchedtable",
            "pending",
            models.CharField(blank=True, default="", max_length=8),
            preserve_default=False,
        ),
        migrations.AlterField("watchedtable", "table", TableNameField(max_length=255, unique=True)),
        migrations.AlterField("change", "table", TableNameField(max_length=255)),
        migrations.AlterField("viewchange", "table", TableNameField(blank=True, max_length=255)),
        migrations.AlterField("phaserun", "stage", models.CharField(blank=True, max_length=255)),
        migrations.RunPython(drop_keys_in_their_old_form, migrations.RunPython.noop),
        migrations.AlterModelOptions("heartbeat", {"base_manager_name": "objects"}),
        migrations.AlterModelOptions("viewchange", {"base_manager_name": "objects"}),
        migrations.AlterModelOptions("watchedtable", {"base_manager_name": "objects"}),
        migrations.AlterModelOptions(
            "refreshschedule", {"base_manager_name": "objects", "ordering": ("view", "id")}
        ),
        migrations.AlterModelOptions(
            "viewcontrol",
            {
                "base_manager_name": "objects",
                "ordering": ("label",),
                "permissions": (("refresh_viewcontrol", "Can refresh, pause, resume and stop"),),
                "verbose_name": "view",
            },
        ),
    ]
