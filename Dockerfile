# The service in one image: docker build --tag promotions-mapper .
#
# For a build that is the same to the byte next year, pin the base by digest: take it from
#   docker buildx imagetools inspect python:3.13-slim-bookworm
# and pass  --build-arg PYTHON_IMAGE=python:3.13-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /app
# The dependencies first, so that a change of ours does not fetch them again. Wheels only: nothing is compiled here.
COPY requirements.txt ./
RUN /app/bin/pip install --require-hashes --only-binary :all: --requirement requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY mapper mapper
COPY adapters adapters
RUN /app/bin/pip install --no-deps --no-build-isolation . \
    && /app/bin/pip uninstall --yes setuptools pip

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 mapper \
    && useradd --uid 10001 --gid mapper --home-dir /data --create-home --shell /usr/sbin/nologin mapper
COPY --from=builder /app /app
ENV PATH=/app/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MAPPER_LEDGER_URL=sqlite:////data/mapper-ledger.db
# By number, so that an orchestrator can see that it is not root. /data is all it writes to: --read-only works.
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/livez', timeout=2)"]
CMD ["promotions-mapper", "serve", "--host", "0.0.0.0", "--port", "8080"]
