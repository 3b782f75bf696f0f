# The project and all it needs, on a machine with or without GPUs (torch's wheels bring CUDA; the host brings the driver):
#     docker build -t fcvit_mm .
#     docker run --gpus all --shm-size 16g -v DATA:/opt/fcvit_mm/data fcvit_mm tools/train.py CONFIG
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends g++ git libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/fcvit_mm
COPY . .
# The same script as `make setup`: exact versions, mmcv's operators from torchvision, nothing of CUDA compiled.
RUN PYTHON=python3.11 PIP_NO_CACHE_DIR=1 dev/setup_env.sh .venv
ENV PATH=/opt/fcvit_mm/.venv/bin:$PATH
ENTRYPOINT ["python"]
CMD ["tools/demo.py", "detect"]
