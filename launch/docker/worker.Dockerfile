# syntax=docker/dockerfile:1
# One SGLang server with our plugin, on SGLang's own image.
# docker build -f launch/docker/worker.Dockerfile -t hexgen-sglang-worker:0.1.0 .
ARG SGLANG_IMAGE=lmsysorg/sglang:v0.5.23

FROM ${SGLANG_IMAGE}
WORKDIR /opt/hexgen
COPY setup.py pyproject.toml ./
COPY hexgen_sglang hexgen_sglang
COPY patches patches
COPY kernels kernels
# The last step refuses an image whose SGLang lacks something that the plugin hooks into.
RUN python3 -m pip install --no-cache-dir . \
    && useradd --uid 10001 --create-home --home-dir /cache hexgen \
    && hexgen-sglang doctor --read-only
ENV HOME=/cache PYTHONUNBUFFERED=1
USER 10001
# Not /opt/hexgen: folders of the source must not shadow installed packages.
WORKDIR /cache
EXPOSE 30010
STOPSIGNAL SIGTERM
# GET /health generates a token when the worker is idle; loading a model takes minutes.
HEALTHCHECK --interval=30s --timeout=25s --start-period=1h CMD \
    ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:30010/health', timeout=24)"]
ENTRYPOINT ["python3", "-m", "sglang.launch_server"]
CMD ["--help"]
