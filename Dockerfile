# Two targets:
#   docker build --target cpu -t amalgam:cpu .    vLLM on CPU, the demo model included
#   docker build --target gpu -t amalgam:gpu .    vLLM on CUDA; name a model: docker run --gpus all … amalgam:gpu serve MODEL
#
# The CPU build of torch comes from PyTorch's own CPU package index:
#   --build-arg PIP_EXTRA_INDEX_URL=<that index>
# Keys are given when it runs, never when it is built. deploy/prove_dockerfile.py carries these steps out without Docker.

# What both targets run on: Debian's Python, and a user without rights.
FROM debian:bookworm-slim AS system
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libnuma1 python3 \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 amalgam \
    && useradd --uid 10001 --gid 10001 --create-home amalgam \
    && install --directory --owner=10001 --group=10001 /srv/amalgam
ENV PATH=/opt/amalgam/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    AMALGAM_HOST=0.0.0.0 \
    AMALGAM_STORE=/srv/amalgam/store \
    AMALGAM_CACHE_DIR=/opt/amalgam/models \
    HF_HOME=/srv/amalgam/hub \
    TORCHINDUCTOR_CACHE_DIR=/srv/amalgam/.cache/torchinductor

FROM system AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/amalgam
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY deploy/constraints-cpu.txt deploy/constraints-gpu.txt deploy/
COPY server server
COPY adapters_store/demo adapters_store/demo

FROM build AS build-cpu
ARG PIP_EXTRA_INDEX_URL
RUN pip install --constraint deploy/constraints-cpu.txt '.[cpu]' && python -m amalgam.cli.torch_companions
RUN amalgam demo install

FROM build AS build-gpu
ARG PIP_EXTRA_INDEX_URL
RUN pip install --constraint deploy/constraints-gpu.txt '.[gpu]' && python -m amalgam.cli.torch_companions

# Triton compiles the launchers of its kernels when it first runs them, so a C compiler stays in the image.
FROM system AS gpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build-gpu /opt/amalgam /opt/amalgam
USER 10001:10001
# The volume is the only place that is written to: compiled loops, vLLM's and torch's caches go below its home there.
ENV HOME=/srv/amalgam
WORKDIR /home/amalgam
VOLUME /srv/amalgam
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=3)"]
ENTRYPOINT ["amalgam"]
CMD ["serve"]

FROM system AS cpu
COPY --from=build-cpu /opt/amalgam /opt/amalgam
USER 10001:10001
# The volume is the only place that is written to: compiled loops, vLLM's and torch's caches go below its home there.
ENV HOME=/srv/amalgam
WORKDIR /home/amalgam
RUN amalgam doctor
VOLUME /srv/amalgam
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=3)"]
ENTRYPOINT ["amalgam"]
CMD ["serve"]
