# The command line on a CPU, not as root. From a clone:
#
#   docker build -t visionattn .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" visionattn train --config quickstart
#
# On NVIDIA GPUs: PyTorch's wheels for CUDA, and the compiler that Triton calls. The host has the driver and NVIDIA's container toolkit.
#
#   docker build -t visionattn:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 --build-arg PACKAGES="gcc libc6-dev" .
#   docker run --rm --gpus all --ipc=host --user "$(id -u):$(id -g)" -v "$PWD:/work" visionattn:cuda doctor

ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:${PYTHON}-slim-bookworm
# Debian's packages: gcc and libc6-dev for Triton, libgl1 and libglib2.0-0 for the extra explain.
ARG PACKAGES=""
RUN if [ -n "${PACKAGES}" ]; then \
        apt-get update && apt-get install -y --no-install-recommends ${PACKAGES} && rm -rf /var/lib/apt/lists/*; \
    fi
# torch and torchvision have to come from one index, so they are installed together and first.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}" "torch>=2.7" "torchvision>=0.22"
# Extras, separated by commas: onnx,medical
ARG EXTRAS=""
COPY --from=wheel /dist /dist
RUN pip install --no-cache-dir "$(echo /dist/*.whl)${EXTRAS:+[${EXTRAS}]}" && visionattn --version
# Writable by whichever user the container is started as.
RUN useradd --uid 1000 --create-home user && install -d -m 1777 /work /cache
ENV HOME=/cache \
    VISIONATTN_CACHE=/cache \
    MPLCONFIGDIR=/tmp/matplotlib
USER 1000
WORKDIR /work
VOLUME /cache
ENTRYPOINT ["visionattn"]
CMD ["--help"]
