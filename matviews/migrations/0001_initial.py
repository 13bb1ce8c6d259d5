import secrets

import django.core.validators
import django.db.models.deletion
from django.db import migrations, models

import matviews.databases.clock
import matviews.models.tracking


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
                ("table", matviews.models.tracking.TableNameField(max_length=255, unique=True)),
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
                ("label", models.CharField(max_length=255, unique=True, verbose_name="label")),
                (
                    "enabled",
                    models.BooleanField(
                        default=True,
                        help_text="If off, the view is not refreshed, and requests are refused.",
                        verbose_name="enabled",
                    ),
                ),
                (
                    "paused",
                    models.BooleanField(
                        default=False,
                        help_text="If on, no further batch of the view starts. Requests are kept and wait.",
                        verbose_name="paused",
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
                        help_text="How many shards of the keys are processed in parallel.",
                        validators=[django.core.validators.MinValueValidator(1)],
                        verbose_name="shard count",
                    ),
                ),
                (
                    "batch_size",
                    models.PositiveIntegerField(
                        blank=True,
                        help_text="Rows per batch. Leave empty to use the default from the code.",
                        null=True,
                        verbose_name="batch size",
                    ),
                ),
                (
                    "batch_target",
                    models.FloatField(
                        blank=True,
                        help_text="Seconds per batch. Leave empty to use the default from the code.",
                        null=True,
                        verbose_name="batch target",
                    ),
                ),
                (
                    "freshness_target",
                    models.DurationField(
                        blank=True,
                        help_text="How old the rows may be. Leave empty to use the default from the code.",
                        null=True,
                        verbose_name="freshness target",
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
                "verbose_name": "materialized view",
                "verbose_name_plural": "materialized views",
                "ordering": ("label",),
                "permissions": (
                    (
                        "operate_viewcontrol",
                        "Can refresh, pause, resume and stop materialized views",
                    ),
                ),
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
                ("table", matviews.models.tracking.TableNameField(max_length=255)),
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
                            ("schedule", "schedule"),
                            ("admin", "admin"),
                            ("command", "command"),
                            ("api", "API"),
                        ],
                        max_length=16,
                        verbose_name="origin",
                    ),
                ),
                ("requested_by", models.CharField(blank=True, max_length=255)),
                ("batch_size", models.PositiveIntegerField(null=True)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("open", "open"),
                            ("merged", "merged"),
                            ("succeeded", "succeeded"),
                            ("failed", "failed"),
                            ("stopped", "stopped"),
                        ],
                        default="open",
                        max_length=16,
                        verbose_name="state",
                    ),
                ),
                ("requested_at", models.DateTimeField(verbose_name="requested at")),
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
                        verbose_name="materialized view",
                    ),
                ),
            ],
            options={
                "verbose_name": "refresh",
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
                ("table", matviews.models.tracking.TableNameField(blank=True, max_length=255)),
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
                ("costs", models.JSONField(default=dict)),
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
                            ("pending", "pending"),
                            ("running", "running"),
                            ("succeeded", "succeeded"),
                            ("failed", "failed"),
                            ("not_converging", "not converging"),
                            ("stopped", "stopped"),
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
                ("seconds", models.FloatField(default=0.0)),
                ("failures", models.PositiveSmallIntegerField(default=0)),
                ("caught_up", models.BooleanField(default=False)),
                ("ran_at", models.DateTimeField(null=True)),
                ("started_at", models.DateTimeField(null=True)),
                ("finished_at", models.DateTimeField(null=True)),
                ("error", models.TextField(blank=True)),
                ("traceback", models.TextField(blank=True)),
                ("fingerprint", models.CharField(blank=True, max_length=64)),
                ("restarts", models.PositiveSmallIntegerField(default=0)),
                ("keys_scanned", models.BigIntegerField(default=0)),
                ("inserted_ranges", models.JSONField(default=list)),
                ("stage", models.CharField(blank=True, max_length=255)),
                ("checkpoint", models.JSONField(null=True)),
                ("dirty_after", models.BigIntegerField(null=True)),
                ("full_refresh_reason", models.CharField(blank=True, max_length=255)),
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
                "verbose_name": "phase run",
                "verbose_name_plural": "phase runs",
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
                        help_text="Leave empty for all phases.",
                        verbose_name="phases",
                    ),
                ),
                (
                    "every",
                    models.PositiveIntegerField(
                        blank=True,
                        help_text="Interval; leave empty to use a crontab.",
                        null=True,
                        validators=[django.core.validators.MinValueValidator(1)],
                        verbose_name="every",
                    ),
                ),
                (
                    "period",
                    models.CharField(
                        choices=[
                            ("seconds", "seconds"),
                            ("minutes", "minutes"),
                            ("hours", "hours"),
                            ("days", "days"),
                        ],
                        default="minutes",
                        max_length=8,
                        verbose_name="period",
                    ),
                ),
                ("enabled", models.BooleanField(default=True, verbose_name="enabled")),
                (
                    "jitter",
                    models.PositiveIntegerField(
                        blank=True,
                        help_text="Seconds over which the starts of views on one schedule are spread. If empty: one second per ten schedules, at most a minute; a crontab starts on time.",
                        null=True,
                        validators=[django.core.validators.MaxValueValidator(1800)],
                        verbose_name="jitter",
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
                        verbose_name="crontab",
                    ),
                ),
                (
                    "view",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="schedules",
                        to="matviews.viewcontrol",
                        verbose_name="materialized view",
                    ),
                ),
            ],
            options={
                "verbose_name": "schedule",
                "verbose_name_plural": "schedules",
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
