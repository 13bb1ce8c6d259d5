import secrets

import django.core.validators
import django.db.models.deletion
from django.db import migrations, models

import matviews.databases.clock
import matviews.models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("django_celery_beat", "0019_alter_periodictasks_options"),
    ]

    operations = [
        migrations.CreateModel(
            name="Heartbeat",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("ran_at", models.DateTimeField()),
            ],
            options={
                "abstract": False,
                "base_manager_name": "objects",
            },
        ),
        migrations.CreateModel(
            name="LogSecret",
            fields=[
                (
                    "id",
                    models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False),
                ),
                ("value", models.CharField(default=secrets.token_hex, max_length=64)),
            ],
            options={
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="TrackedTable",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("table", matviews.models.TableNameField(max_length=255, unique=True)),
                ("columns", models.JSONField(null=True)),
                ("links", models.JSONField(default=list)),
                ("triggers", models.JSONField(default=list)),
                ("views", models.JSONField(default=list)),
                ("pending", models.CharField(blank=True, max_length=8)),
            ],
            options={
                "abstract": False,
                "base_manager_name": "objects",
            },
        ),
        migrations.CreateModel(
            name="ViewControl",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("label", models.CharField(max_length=255, unique=True)),
                (
                    "enabled",
                    models.BooleanField(
                        default=True,
                        help_text="Whether the view is refreshed at all. If not, requests are refused.",
                    ),
                ),
                (
                    "paused",
                    models.BooleanField(
                        default=False,
                        help_text="Whether its work is held between two batches. Requests are kept and wait.",
                    ),
                ),
                (
                    "include_in_refresh_all",
                    models.BooleanField(
                        default=True,
                        help_text="Whether a refresh of all views includes this one.",
                        verbose_name="refresh with all views",
                    ),
                ),
                (
                    "shard_count",
                    models.PositiveSmallIntegerField(
                        default=1,
                        help_text="Shares of the keys that are worked on side by side.",
                        validators=[django.core.validators.MinValueValidator(1)],
                    ),
                ),
                (
                    "batch_size",
                    models.PositiveIntegerField(
                        blank=True, help_text="Rows per batch. Empty: as the code says.", null=True
                    ),
                ),
                (
                    "batch_target",
                    models.FloatField(
                        blank=True,
                        help_text="Seconds per batch. Empty: as the code says.",
                        null=True,
                    ),
                ),
                (
                    "freshness_target",
                    models.DurationField(
                        blank=True,
                        help_text="How old the last success may be. Empty: as the code says.",
                        null=True,
                    ),
                ),
                ("last_insert", models.DateTimeField(editable=False, null=True)),
                ("last_update", models.DateTimeField(editable=False, null=True)),
                ("last_delete", models.DateTimeField(editable=False, null=True)),
                ("default_scheduled", models.BooleanField(default=False, editable=False)),
                ("fingerprints", models.JSONField(default=dict, editable=False)),
                ("verification", models.JSONField(editable=False, null=True)),
            ],
            options={
                "verbose_name": "view",
                "ordering": ("label",),
                "permissions": (("refresh_viewcontrol", "Can refresh, pause, resume and stop"),),
                "base_manager_name": "objects",
            },
        ),
        migrations.CreateModel(
            name="Change",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("table", matviews.models.TableNameField(max_length=255)),
                ("links", models.JSONField(null=True)),
                ("count", models.PositiveIntegerField(db_default=1)),
                ("logged_at", models.DateTimeField(db_default=matviews.databases.clock.UtcNow())),
            ],
            options={
                "indexes": [models.Index(fields=["table"], name="matviews_change_table")],
            },
        ),
        migrations.CreateModel(
            name="Refresh",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("phases", models.JSONField()),
                (
                    "origin",
                    models.CharField(
                        choices=[
                            ("schedule", "Schedule"),
                            ("admin", "Admin"),
                            ("command", "Command"),
                            ("api", "Api"),
                        ],
                        max_length=16,
                    ),
                ),
                ("requested_by", models.CharField(blank=True, max_length=255)),
                ("batch_size", models.PositiveIntegerField(null=True)),
                (
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
                ("requested_at", models.DateTimeField()),
                ("started_at", models.DateTimeField(null=True)),
                ("finished_at", models.DateTimeField(null=True)),
                ("stop_requested", models.BooleanField(default=False)),
                ("requests", models.PositiveIntegerField(default=1)),
                ("claims_seen", models.BigIntegerField(null=True)),
                ("error", models.TextField(blank=True)),
                (
                    "merged_into",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="merged",
                        to="matviews.refresh",
                    ),
                ),
                (
                    "view",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="refreshes",
                        to="matviews.viewcontrol",
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "refreshes",
                "ordering": ("id",),
            },
        ),
        migrations.CreateModel(
            name="ViewChange",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("table", matviews.models.TableNameField(blank=True, max_length=255)),
                ("links", models.JSONField(null=True)),
                ("count", models.PositiveIntegerField(db_default=1)),
                ("logged_at", models.DateTimeField(db_default=matviews.databases.clock.UtcNow())),
                (
                    "view",
                    models.ForeignKey(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="changes",
                        to="matviews.viewcontrol",
                    ),
                ),
            ],
            options={
                "abstract": False,
                "base_manager_name": "objects",
            },
        ),
        migrations.CreateModel(
            name="ViewShard",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("number", models.PositiveSmallIntegerField()),
                ("token", models.BigIntegerField(default=1)),
                ("resend_after", models.DateTimeField(null=True)),
                ("resends", models.PositiveIntegerField(default=0)),
                ("worker", models.CharField(blank=True, max_length=255)),
                ("claimed_at", models.DateTimeField(null=True)),
                ("claimed_token", models.BigIntegerField(default=0)),
                ("attempts", models.PositiveIntegerField(default=0)),
                ("claims", models.BigIntegerField(default=0)),
                ("drain_number", models.BigIntegerField(default=0)),
                ("full_refresh_after", models.BigIntegerField(default=0)),
                ("full_refresh_reason", models.CharField(blank=True, max_length=255)),
                ("pending", models.JSONField(default=list)),
                ("checkpoints", models.JSONField(default=dict)),
                (
                    "view",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="shards",
                        to="matviews.viewcontrol",
                    ),
                ),
            ],
            options={
                "ordering": ("view", "number"),
            },
        ),
        migrations.CreateModel(
            name="PhaseRun",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "phase",
                    models.CharField(
                        choices=[("insert", "Insert"), ("update", "Update"), ("delete", "Delete")],
                        max_length=8,
                    ),
                ),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("pending", "Pending"),
                            ("running", "Running"),
                            ("succeeded", "Succeeded"),
                            ("failed", "Failed"),
                            ("not_converging", "not converging"),
                            ("stopped", "Stopped"),
                        ],
                        default="pending",
                        max_length=16,
                    ),
                ),
                ("cursor", models.JSONField(null=True)),
                ("batch_size", models.PositiveIntegerField(null=True)),
                ("pace", models.JSONField(default=dict)),
                ("samples", models.JSONField(default=list)),
                ("batches", models.PositiveIntegerField(default=0)),
                ("rows", models.BigIntegerField(default=0)),
                ("estimate", models.BigIntegerField(null=True)),
                ("keys_scanned", models.BigIntegerField(default=0)),
                ("inserted_ranges", models.JSONField(default=list)),
                ("stage", models.CharField(blank=True, max_length=255)),
                ("fingerprint", models.CharField(blank=True, max_length=64)),
                ("restarts", models.PositiveSmallIntegerField(default=0)),
                ("checkpoint", models.JSONField(null=True)),
                ("dirty_after", models.BigIntegerField(null=True)),
                ("full_refresh_reason", models.CharField(blank=True, max_length=255)),
                ("seconds", models.FloatField(default=0.0)),
                ("failures", models.PositiveSmallIntegerField(default=0)),
                ("caught_up", models.BooleanField(default=False)),
                ("ran_at", models.DateTimeField(null=True)),
                ("started_at", models.DateTimeField(null=True)),
                ("finished_at", models.DateTimeField(null=True)),
                ("error", models.TextField(blank=True)),
                ("traceback", models.TextField(blank=True)),
                (
                    "merged_into",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="merged",
                        to="matviews.phaserun",
                    ),
                ),
                (
                    "refresh",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="runs",
                        to="matviews.refresh",
                    ),
                ),
                (
                    "shard",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="runs",
                        to="matviews.viewshard",
                    ),
                ),
            ],
            options={
                "ordering": ("id",),
            },
        ),
        migrations.CreateModel(
            name="DirtyKeys",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("drain_number", models.BigIntegerField()),
                ("count", models.PositiveIntegerField()),
                ("keys", models.JSONField()),
                (
                    "shard",
                    models.ForeignKey(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="dirty",
                        to="matviews.viewshard",
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "dirty keys",
            },
        ),
        migrations.CreateModel(
            name="RefreshSchedule",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "phases",
                    models.JSONField(
                        blank=True,
                        default=list,
                        help_text="Which phases. Empty: all that the view has.",
                    ),
                ),
                (
                    "every",
                    models.PositiveIntegerField(
                        blank=True,
                        help_text="How many of the period. Empty: by the crontab.",
                        null=True,
                        validators=[django.core.validators.MinValueValidator(1)],
                    ),
                ),
                (
                    "period",
                    models.CharField(
                        choices=[
                            ("seconds", "Seconds"),
                            ("minutes", "Minutes"),
                            ("hours", "Hours"),
                            ("days", "Days"),
                        ],
                        default="minutes",
                        max_length=8,
                    ),
                ),
                ("enabled", models.BooleanField(default=True)),
                (
                    "jitter",
                    models.PositiveIntegerField(
                        blank=True,
                        help_text="Seconds over which the starts of views on one schedule are spread. Empty: as many as a tenth of the schedules, at most a minute; a crontab starts at its time.",
                        null=True,
                        validators=[django.core.validators.MaxValueValidator(1800)],
                    ),
                ),
                (
                    "crontab",
                    models.ForeignKey(
                        blank=True,
                        help_text="Instead of an interval.",
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="django_celery_beat.crontabschedule",
                    ),
                ),
                (
                    "view",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="schedules",
                        to="matviews.viewcontrol",
                    ),
                ),
            ],
            options={
                "ordering": ("view", "id"),
                "base_manager_name": "objects",
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("crontab", None), ("every__gte", 1)),
                            models.Q(("crontab__isnull", False), ("every", None)),
                            _connector="OR",
                        ),
                        name="matviews_schedule_either",
                        violation_error_message="Give either an interval of at least 1 or a crontab.",
                    )
                ],
            },
        ),
        migrations.AddIndex(
            model_name="refresh",
            index=models.Index(fields=["view", "state"], name="matviews_refresh_state"),
        ),
        migrations.AddIndex(
            model_name="refresh",
            index=models.Index(fields=["view", "id"], name="matviews_refresh_history"),
        ),
        migrations.AddIndex(
            model_name="refresh",
            index=models.Index(fields=["state", "finished_at"], name="matviews_refresh_ended"),
        ),
        migrations.AddConstraint(
            model_name="viewshard",
            constraint=models.UniqueConstraint(
                fields=("view", "number"), name="matviews_viewshard_number"
            ),
        ),
        migrations.AddIndex(
            model_name="phaserun",
            index=models.Index(fields=["shard", "phase"], name="matviews_run_phase"),
        ),
        migrations.AddConstraint(
            model_name="phaserun",
            constraint=models.UniqueConstraint(
                fields=("refresh", "shard", "phase"), name="matviews_run_once"
            ),
        ),
    ]
