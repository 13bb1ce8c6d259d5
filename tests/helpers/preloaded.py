"""What the processes of tests import, as far as it needs no settings, and nothing of ours.

Imported in the process that `tests.helpers.forked` forks them from, and nowhere else.
"""

# ruff: noqa: F401
import gc

import celery.app.amqp
import celery.app.log
import celery.app.trace
import celery.apps.beat
import celery.apps.worker
import celery.bin.celery
import celery.concurrency.prefork
import celery.concurrency.solo
import celery.fixups.django
import celery.loaders.app
import celery.worker.strategy
import django.contrib.admin.options
import django.core.management.commands.migrate
import django.core.management.commands.shell
import django.db.backends.sqlite3.base
import django.db.migrations.autodetector
import django.template.backends.django
import django.test
import django.views.debug
import kombu.transport.memory
import kombu.transport.pyamqp
import kombu.transport.redis
import psycopg
import pymysql
import rich.progress
import rich.table
from django.conf import settings

assert not settings.configured  # each program has its own

# Collected now, and left alone by the collector of each fork, they stay common to all forks.
gc.collect()
gc.freeze()
