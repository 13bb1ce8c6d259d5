"""`celery` in a process whose clock can be wrong: `python -m tests.chaos.celery_process beat`."""

from tests.chaos import clock

clock.install()  # before Celery is imported

from celery.__main__ import main  # noqa: E402

if __name__ == "__main__":
    main()
