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
            name="Alarm",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("kind", models.CharField(max_length=32)),
                ("view", models.CharField(blank=True, max_length=255)),
                ("slot", models.CharField(max_length=32)),
                ("text", models.TextField()),
                ("error", models.TextField(blank=True)),
                ("views", models.JSONField(default=list)),
                ("since", models.DateTimeField()),
                ("gone_since", models.DateTimeField(null=True)),
                ("raised_at", models.DateTimeField(null=True)),
                ("ended_at", models.DateTimeField(null=True)),
                ("is_open", models.BooleanField(default=True, null=True)),
                ("notified_at", models.DateTimeField(null=True)),
                (
                    "event",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("raised", "Raised"),
                            ("repeated", "Repeated"),
                            ("ended", "Ended"),
                        ],
                        max_length=8,
                    ),
                ),
                ("undelivered", models.CharField(blank=True, max_length=32)),
                ("claim", models.CharField(blank=True, max_length=32)),
                ("claimed_at", models.DateTimeField(null=True)),
            ],
            options={
                "verbose_name": "alarm",
                "verbose_name_plural": "alarms",
                "ordering": ("id",),
                "constraints": [
                    models.UniqueConstraint(
                        fields=("view", "slot", "is_open"), name="matviews_alarm_open"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Heartbeat",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("maintenance_ended_at", models.DateTimeField(null=True)),
                ("maintenance_began_at", models.DateTimeField(null=True)),
                ("beat_began_at", models.DateTimeField(null=True)),
                ("beat_sent_at", models.DateTimeField(null=True)),
                ("pulsed_at", models.DateTimeField(null=True)),
                ("followed_at", models.DateTimeField(null=True)),
                ("send_failed_at", models.DateTimeField(null=True)),
                ("send_error", models.CharField(blank=True, max_length=300)),
                ("triggers_seen_at", models.DateTimeField(null=True)),
            ],
            options={
                "abstract": False,
                "base_manager_name": "objects",
            },
        ),
        migrations.CreateModel(
            name="LogFloor",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "transaction",
                    matviews.models.tracking.TransactionField(
                        db_default=matviews.models.tracking.CurrentTransaction(),
                        editable=False,
                        kind="xid8",
                    ),
                ),
                ("next", matviews.models.tracking.TransactionField(kind="xid8")),
                ("log", matviews.models.tracking.TransactionField(kind="xid8")),
                ("running", matviews.models.tracking.TransactionField(kind="xid8[]")),
                ("views", matviews.models.tracking.TransactionField(kind="bigint[]")),
                ("least", matviews.models.tracking.TransactionField(kind="xid8[]")),
            ],
            options={
                "default_permissions": (),
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
                ("recorded", models.JSONField(default=list)),
                ("value_logs", models.JSONField(default=list)),
                ("triggers", models.JSONField(default=list)),
                ("views", models.JSONField(default=list)),
                ("view_columns", models.JSONField(default=dict)),
                ("storage", models.CharField(blank=True, max_length=40)),
                ("pending_version", models.CharField(blank=True, max_length=8)),
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
                ("insert_batches", models.BigIntegerField(default=0, editable=False)),
                ("insert_rows", models.BigIntegerField(default=0, editable=False)),
                ("insert_seconds", models.FloatField(default=0.0, editable=False)),
                ("insert_failures", models.BigIntegerField(default=0, editable=False)),
                ("update_batches", models.BigIntegerField(default=0, editable=False)),
                ("update_rows", models.BigIntegerField(default=0, editable=False)),
                ("update_seconds", models.FloatField(default=0.0, editable=False)),
                ("update_failures", models.BigIntegerField(default=0, editable=False)),
                ("delete_batches", models.BigIntegerField(default=0, editable=False)),
                ("delete_rows", models.BigIntegerField(default=0, editable=False)),
                ("delete_seconds", models.FloatField(default=0.0, editable=False)),
                ("delete_failures", models.BigIntegerField(default=0, editable=False)),
                ("refreshes_succeeded", models.BigIntegerField(default=0, editable=False)),
                ("refreshes_failed", models.BigIntegerField(default=0, editable=False)),
                ("refreshes_stopped", models.BigIntegerField(default=0, editable=False)),
                ("label", models.CharField(max_length=255, unique=True, verbose_name="label")),
                (
                    "enabled",
                    models.BooleanField(
                        default=True,
                        help_text="If off, the view is not refreshed, and requests are refused.",
                        verbose_name="enabled",
                    ),
                ),
                ("paused_at", models.DateTimeField(editable=False, null=True)),
                (
                    "paused_by",
                    models.CharField(blank=True, editable=False, max_length=255),
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
                (
                    "strategy",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("by_keys", "by keys"),
                            ("full", "in full"),
                            ("full_staged", "in full, staged"),
                        ],
                        help_text="How the view is refreshed after a change. Leave empty to use the default from the code, or what costs least.",
                        max_length=16,
                        verbose_name="strategy",
                    ),
                ),
                (
                    "queue",
                    models.CharField(
                        blank=True,
                        help_text="The Celery queue of its tasks. Leave empty to use the default from the code. A worker must listen to it.",
                        max_length=255,
                        verbose_name="queue",
                    ),
                ),
                (
                    "quiet_from",
                    models.TimeField(
                        blank=True,
                        help_text="From this time of day on, refreshes wait unless they are forced, and the view does not count as late. Leave both empty to use the default from the code; the same time twice means no quiet hours.",
                        null=True,
                        verbose_name="quiet from",
                    ),
                ),
                (
                    "quiet_until",
                    models.TimeField(
                        blank=True,
                        help_text="If this is not later than the start, the quiet hours end on the next day.",
                        null=True,
                        verbose_name="quiet until",
                    ),
                ),
                (
                    "quiet_zone",
                    models.CharField(
                        blank=True,
                        help_text="As in Europe/Berlin. Leave empty to use the time zone of the project.",
                        max_length=63,
                        verbose_name="time zone of the quiet hours",
                    ),
                ),
                ("last_insert", models.DateTimeField(editable=False, null=True)),
                ("last_update", models.DateTimeField(editable=False, null=True)),
                ("last_delete", models.DateTimeField(editable=False, null=True)),
                ("insert_as_of", models.DateTimeField(editable=False, null=True)),
                ("update_as_of", models.DateTimeField(editable=False, null=True)),
                ("delete_as_of", models.DateTimeField(editable=False, null=True)),
                ("failures", models.PositiveIntegerField(default=0, editable=False)),
                ("failing_since", models.DateTimeField(editable=False, null=True)),
                ("own_failures", models.PositiveIntegerField(default=0, editable=False)),
                ("own_failing_since", models.DateTimeField(editable=False, null=True)),
                ("failed_phases", models.JSONField(default=list, editable=False)),
                (
                    "failed_definition",
                    models.CharField(blank=True, editable=False, max_length=64),
                ),
                ("retry_at", models.DateTimeField(editable=False, null=True)),
                ("wait", models.JSONField(editable=False, null=True)),
                ("governed_since", models.DateTimeField(editable=False, null=True)),
                ("echoes", models.PositiveSmallIntegerField(default=0, editable=False)),
                ("suspended_at", models.DateTimeField(editable=False, null=True)),
                ("default_schedules_created", models.BooleanField(default=False, editable=False)),
                ("additive", models.BooleanField(editable=False, null=True)),
                (
                    "additive_reason",
                    models.CharField(blank=True, editable=False, max_length=255),
                ),
                ("fingerprints", models.JSONField(default=dict, editable=False)),
                ("verification", models.JSONField(editable=False, null=True)),
                ("differing", models.JSONField(editable=False, null=True)),
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
                    ("resume_viewcontrol", "Can resume suspended materialized views"),
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
                ("changed", models.JSONField(null=True)),
                ("logged_at", models.DateTimeField(db_default=matviews.databases.clock.UtcNow())),
                (
                    "transaction",
                    matviews.models.tracking.TransactionField(
                        db_default=matviews.models.tracking.CurrentTransaction(),
                        editable=False,
                        kind="xid8",
                    ),
                ),
            ],
            options={
                "indexes": [
                    matviews.models.tracking.TransactionIndex(
                        fields=["transaction", "table"], name="matviews_change_xact"
                    )
                ],
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
                            ("dependency", "dependency"),
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
                ("forced", models.BooleanField(default=False)),
                ("upstream_refreshes", models.JSONField(default=list)),
                ("waits_for_upstream", models.BooleanField(default=False)),
                ("requests", models.PositiveIntegerField(default=1)),
                ("claims_at_request", models.BigIntegerField(null=True)),
                ("error", models.TextField(blank=True)),
                ("proceeded_despite", models.JSONField(null=True)),
                ("repeats", models.PositiveIntegerField(default=0)),
                ("repeated_since", models.DateTimeField(null=True)),
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
            name="ViewSums",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("fingerprint", models.CharField(max_length=64)),
                ("log", models.CharField(max_length=40, unique=True)),
                ("lookups", models.JSONField(default=list)),
                ("table", models.CharField(max_length=40)),
                ("drain_number", models.BigIntegerField(default=-1)),
                ("refresh", models.BigIntegerField(default=0)),
                ("reason", models.CharField(blank=True, max_length=255)),
                (
                    "view",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="sums",
                        to="matviews.viewcontrol",
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "view sums",
                "abstract": False,
                "base_manager_name": "objects",
                "indexes": [models.Index(fields=["view"], name="matviews_viewsums_view")],
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
                    "transaction",
                    matviews.models.tracking.TransactionField(
                        db_default=matviews.models.tracking.CurrentTransaction(),
                        editable=False,
                        kind="xid8",
                    ),
                ),
                (
                    "view",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="changes",
                        to="matviews.viewcontrol",
                    ),
                ),
            ],
            options={
                "abstract": False,
                "base_manager_name": "objects",
                "indexes": [
                    models.Index(fields=["view", "transaction"], name="matviews_viewchange_view"),
                    models.Index(fields=["transaction"], name="matviews_viewchange_xact"),
                ],
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
                ("key_range", models.JSONField(null=True)),
                ("parked_count", models.PositiveIntegerField(default=0)),
                (
                    "turn_queue",
                    models.CharField(db_index=True, max_length=255, null=True),
                ),
                ("turn_deadline", models.DateTimeField(null=True)),
                ("turn_token", models.BigIntegerField(default=0)),
                ("turn_granted_at", models.DateTimeField(null=True)),
                ("drain_number", models.BigIntegerField(default=0)),
                ("full_refresh_after", models.BigIntegerField(default=0)),
                ("full_refresh_reason", models.CharField(blank=True, max_length=255)),
                ("pending_drains", models.JSONField(default=list)),
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
                ("failed_batches", models.PositiveIntegerField(default=0)),
                ("caught_up", models.BooleanField(default=False)),
                ("last_batch_at", models.DateTimeField(null=True)),
                ("as_of", models.DateTimeField(null=True)),
                ("started_at", models.DateTimeField(null=True)),
                ("finished_at", models.DateTimeField(null=True)),
                ("error", models.TextField(blank=True)),
                ("traceback", models.TextField(blank=True)),
                ("external_cause", models.BooleanField(default=False)),
                ("fingerprint", models.CharField(blank=True, max_length=64)),
                ("restarts", models.PositiveSmallIntegerField(default=0)),
                ("keys_scanned", models.BigIntegerField(default=0)),
                ("inserted_ranges", models.JSONField(default=list)),
                ("stage", models.CharField(blank=True, max_length=255)),
                ("checkpoint", models.JSONField(null=True)),
                ("dirty_after", models.BigIntegerField(null=True)),
                (
                    "strategy",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("by_keys", "by keys"),
                            ("full", "in full"),
                            ("full_staged", "in full, staged"),
                        ],
                        max_length=16,
                    ),
                ),
                ("expected_seconds", models.JSONField(default=dict)),
                ("full_refresh_reason", models.CharField(blank=True, max_length=255)),
                ("parked", models.PositiveIntegerField(default=0)),
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
            name="ParkedKey",
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
                ("key", models.JSONField()),
                ("fingerprint", models.CharField(max_length=64)),
                ("error_class", models.CharField(max_length=100)),
                ("code", models.CharField(blank=True, max_length=64)),
                ("constraint", models.CharField(blank=True, max_length=255)),
                ("columns", models.JSONField(default=list)),
                ("message", models.TextField()),
                ("involves_others", models.BooleanField(default=False)),
                ("first_seen", models.DateTimeField()),
                ("last_seen", models.DateTimeField()),
                ("tries", models.PositiveIntegerField(default=1)),
                ("retry_at", models.DateTimeField()),
                (
                    "shard",
                    models.ForeignKey(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="parked",
                        to="matviews.viewshard",
                    ),
                ),
            ],
            options={
                "ordering": ("id",),
            },
        ),
        migrations.CreateModel(
            name="ShardChange",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("table", matviews.models.tracking.TableNameField(blank=True, max_length=255)),
                ("links", models.JSONField(null=True)),
                ("count", models.PositiveIntegerField()),
                ("logged_at", models.DateTimeField()),
                (
                    "shard",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="changes",
                        to="matviews.viewshard",
                    ),
                ),
            ],
            options={
                "abstract": False,
                "base_manager_name": "objects",
                "indexes": [models.Index(fields=["shard"], name="matviews_shardchange_shard")],
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
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="dirty",
                        to="matviews.viewshard",
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "dirty keys",
                "indexes": [
                    models.Index(fields=["shard", "drain_number"], name="matviews_dirtykeys_drain")
                ],
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
                    "kind",
                    models.CharField(
                        choices=[("refresh", "refresh"), ("verify", "verification")],
                        default="refresh",
                        max_length=8,
                        verbose_name="what",
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
                    "on_change",
                    models.BooleanField(
                        default=False,
                        help_text="Refresh this long after the first change of the source (0: at once), instead of at regular times. Leave the time empty to refresh as late as the freshness target allows.",
                        verbose_name="on change",
                    ),
                ),
                (
                    "every",
                    models.PositiveIntegerField(
                        blank=True,
                        help_text="Interval; leave empty to use a crontab.",
                        null=True,
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
                    "sample",
                    models.PositiveIntegerField(
                        blank=True,
                        help_text="About how many keys each verification compares, in ranges that it chooses at random. Leave empty for all keys.",
                        null=True,
                        validators=[django.core.validators.MinValueValidator(1)],
                        verbose_name="sample",
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
                            models.Q(("crontab", None), ("every__gte", 1), ("on_change", False)),
                            models.Q(
                                ("crontab__isnull", False), ("every", None), ("on_change", False)
                            ),
                            models.Q(("crontab", None), ("on_change", True)),
                            _connector="OR",
                        ),
                        name="matviews_schedule_either",
                        violation_error_message="Give either an interval of at least 1 or a crontab.",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="VerifyRun",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("token", models.BigIntegerField(default=1)),
                ("sample", models.PositiveIntegerField(null=True)),
                ("repair", models.BooleanField(default=False)),
                (
                    "origin",
                    models.CharField(
                        choices=[
                            ("schedule", "schedule"),
                            ("admin", "admin"),
                            ("command", "command"),
                            ("api", "API"),
                            ("dependency", "dependency"),
                        ],
                        max_length=16,
                    ),
                ),
                ("requested_by", models.CharField(blank=True, max_length=255)),
                ("requested_at", models.DateTimeField()),
                ("started_at", models.DateTimeField(null=True)),
                ("worker", models.CharField(blank=True, max_length=255)),
                ("resend_after", models.DateTimeField(null=True)),
                ("attempts", models.PositiveIntegerField(default=0)),
                ("progress", models.JSONField(default=dict)),
                ("wait", models.JSONField(null=True)),
                ("waiting_since", models.DateTimeField(null=True)),
                ("proceeded_despite", models.JSONField(null=True)),
                (
                    "view",
                    models.OneToOneField(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="verify_run",
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
            name="RefreshPermit",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("queue", models.CharField(blank=True, max_length=255)),
                ("number", models.PositiveIntegerField(null=True)),
                ("used_at", models.DateTimeField(null=True)),
                ("waiting_since", models.DateTimeField(null=True)),
                (
                    "view",
                    models.OneToOneField(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="permit",
                        to="matviews.viewcontrol",
                    ),
                ),
            ],
            options={
                "abstract": False,
                "base_manager_name": "objects",
                "constraints": [
                    models.UniqueConstraint(
                        fields=("queue", "number"), name="matviews_permit_number"
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
