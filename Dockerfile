# The project and all it needs, on a machine with or without GPUs (torch's wheels bring CUDA; the host brings the driver):
#     docker build -t fcvit_mm .
#     docker run --gpus all --shm-size 16g -v "$PWD/data:/opt/fcvit_mm/data" -v "$PWD/work_dirs:/opt/fcvit_mm/work_dirs" \
#         fcvit_mm tools/train.py CONFIG
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends g++ git libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/fcvit_mm
COPY . .
# The same script as `make setup`: exact versions, mmcv's operators from torchvision, nothing of CUDA compiled.
# All users may read the files, also if the checkout is private to its owner.
RUN chmod -R a+rX . && PYTHON=python3.11 PIP_NO_CACHE_DIR=1 dev/setup_env.sh .venv
# A user without an account (docker run --user, Kubernetes) has neither a name, without which torch cannot be imported, nor
# a home folder for the caches of torch, Triton and Matplotlib.
ENV PATH=/opt/fcvit_mm/.venv/bin:$PATH USER=fcvit_mm HOME=/tmp
ENTRYPOINT ["python"]
CMD ["tools/demo.py", "detect"]
