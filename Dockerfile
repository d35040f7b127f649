# fluxexp with everything that it needs but weights.
#
#   docker build -t fluxexp .
#   docker run --rm -v "$PWD/outputs:/work/outputs" fluxexp +experiment=fill
#   docker run --rm --gpus all --ipc host -v "$PWD:/work" fluxexp:cuda +experiment=fill model=flux_fill ...
#
# docs/docker.md says how to build the image for GPUs.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
# `cpu` is small. For GPUs: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130, or "" for the index of PyPI.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src ./src
COPY conf ./conf
RUN python -m venv /opt/fluxexp \
    && /opt/fluxexp/bin/python -m pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} \
        --constraint constraints.txt ".[parquet,s3]"

FROM python:${PYTHON}-slim-bookworm
# Triton compiles the launchers of its kernels with a C compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 fluxexp \
    && mkdir /work \
    && chown fluxexp /work
COPY --from=build /opt/fluxexp /opt/fluxexp
ENV PATH=/opt/fluxexp/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 1000
WORKDIR /work
ENTRYPOINT ["fluxexp"]
CMD ["--help"]
