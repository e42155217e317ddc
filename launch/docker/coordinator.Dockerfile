# syntax=docker/dockerfile:1
# The coordinator: no SGLang, no torch, no GPU.
# docker build -f launch/docker/coordinator.Dockerfile -t hexgen-sglang-coordinator:0.1.0 .
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /source
COPY setup.py pyproject.toml ./
COPY hexgen_sglang hexgen_sglang
COPY patches patches
COPY kernels kernels
COPY launch/setup/requirements-cpu.txt constraints.txt
# The pinned versions are the tested ones; only what the coordinator needs is installed of them.
RUN python -m venv /opt/hexgen \
    && /opt/hexgen/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin hexgen
COPY --from=build /opt/hexgen /opt/hexgen
ENV PATH=/opt/hexgen/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
EXPOSE 8000 5600
STOPSIGNAL SIGTERM
# Without a worker GET /health is 503; this asks whether the process answers.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD \
    ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/openapi.json', timeout=4)"]
ENTRYPOINT ["hexgen-sglang", "coordinator"]
