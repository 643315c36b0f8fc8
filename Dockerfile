# FLASepformer on the CPU:
#     docker build -t flasepformer .
#     docker run --rm -v "$PWD:/recordings" flasepformer talk.m4a --out tracks
FROM python:3.12-slim
WORKDIR /package
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir ".[media]" \
    && rm -rf build
WORKDIR /recordings
ENTRYPOINT ["flasepformer"]
CMD ["--help"]
