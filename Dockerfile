# FLASepformer on the CPU:
#     docker build -t flasepformer .    # --build-arg TORCH="torch --index-url ADDRESS": the CPU build, at the address that pytorch.org names
#     docker run --rm -v "$PWD:/recordings" flasepformer talk.m4a --out tracks
FROM python:3.12-slim
WORKDIR /package
COPY pyproject.toml README.md LICENSE ./
COPY packaging packaging
COPY src src
ARG TORCH=torch
RUN pip install --no-cache-dir ${TORCH} \
    && pip install --no-cache-dir ".[media]"
WORKDIR /recordings
ENTRYPOINT ["flasepformer"]
CMD ["--help"]
