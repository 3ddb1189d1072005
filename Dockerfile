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
# The base comes without bytecode, and at run time none is written: each start and each health check would compile
# Python's own library anew, which takes longer than all the rest of them.
RUN STDLIB=$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))') \
    && python -m compileall -q -x 'site-packages|ensurepip|idlelib|tkinter' "$STDLIB" \
    && groupadd --gid 10001 mapper \
    && useradd --uid 10001 --gid mapper --home-dir /data --no-create-home --shell /usr/sbin/nologin mapper \
    && install --directory --owner mapper --group mapper --mode 700 /data
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
# Where the operator's routes are, and through no proxy that the environment may name.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["python", "-c", "import http.client, os, sys; \
    there = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('MAPPER_ADMIN_PORT') or 8080), timeout=2); \
    there.request('GET', '/livez'); \
    sys.exit(there.getresponse().status != 200)"]
CMD ["promotions-mapper", "serve", "--host", "0.0.0.0", "--port", "8080"]
