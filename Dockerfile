# locus-lightning with CUDA, for one machine or a cluster's nodes.
#
#   docker build -t locus-lightning .
#   docker run --rm --gpus all -v "$PWD:/workspace" -v "$HOME/.cache/huggingface:/home/locus/.cache/huggingface" locus-lightning fit --config configs/llava.yaml
#
# Without --gpus the default run works too: docker run --rm -v "$PWD:/workspace" locus-lightning fit --config configs/tiny.yaml
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04 AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV DEBIAN_FRONTEND=noninteractive PYTHONUNBUFFERED=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv gcc libc6-dev python3-dev git \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv \
    && useradd --create-home --uid 10001 locus \
    && mkdir /workspace && chown locus /workspace
ENV PATH=/opt/venv/bin:$PATH VIRTUAL_ENV=/opt/venv
# hadolint ignore=DL3013
RUN pip install --no-cache-dir uv

# for development: the sources are mounted, `uv run` makes their environment
FROM base AS dev
USER 10001
WORKDIR /workspace

FROM base AS product
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
COPY configs /src/configs
RUN uv pip install --no-cache "/src[smolvlm]" && locus --version
USER 10001
WORKDIR /workspace
ENTRYPOINT ["locus"]
CMD ["--help"]
