# syntax=docker/dockerfile:1
# One image per program: docker build --target producer|consumer|provision|operator .
# BUILD_IMAGE and RUNTIME_IMAGE must be of the same Debian release: the programs link its glibc and OpenSSL.
ARG BUILD_IMAGE=docker.io/library/rust:1.95-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_IMAGE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential libssl-dev pkg-config zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
# distroless/cc has glibc, libgcc and OpenSSL, but not the zlib that librdkafka links. /usr/lib is on the loader's own
# search path on every architecture, so this needs no ldconfig in an image that has none.
RUN mkdir -p /out && cp -L "/lib/$(gcc -print-multiarch)/libz.so.1" /out/
WORKDIR /src
COPY . .

# One cargo run per program, not one for all: cargo gives a shared crate every feature that anything in the same run asks
# for, and the consumer would carry Postgres and S3 clients that it must not have.
# `locked`: the four stages may run at the same time and share one target folder.
FROM build AS build-producer
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    CARGO_TARGET_DIR=target cargo build --locked --release -p orderflow-producer \
    && cp target/release/orderflow-producer /out/

FROM build AS build-consumer
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    CARGO_TARGET_DIR=target cargo build --locked --release -p orderflow-consumer \
    && cp target/release/orderflow-consumer /out/

FROM build AS build-provision
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    CARGO_TARGET_DIR=target cargo build --locked --release -p orderflow-provision \
    && cp target/release/orderflow-provision /out/

FROM build AS build-operator
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    CARGO_TARGET_DIR=target cargo build --locked --release -p orderflow-operator \
    && cp target/release/orderflow-operator /out/

FROM ${RUNTIME_IMAGE} AS runtime
ARG VERSION=dev
LABEL org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.licenses=Apache-2.0
COPY --from=build /out/libz.so.1 /usr/lib/
# The number, because Kubernetes cannot see that a user given by name is not root.
USER 65532:65532

# In each stage `--help` proves that the loader finds every library, here and not on a cluster. There is no shell.
FROM runtime AS producer
LABEL org.opencontainers.image.title=orderflow-producer \
      org.opencontainers.image.description="REST API, shards, relay, receipts, feed and dashboard of OrderFlow"
COPY --from=build-producer /out/orderflow-producer /usr/local/bin/
RUN ["/usr/local/bin/orderflow-producer", "--help"]
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/orderflow-producer"]

FROM runtime AS consumer
LABEL org.opencontainers.image.title=orderflow-consumer \
      org.opencontainers.image.description="Turns each OrderFlow event into one notification, through Kafka alone"
COPY --from=build-consumer /out/orderflow-consumer /usr/local/bin/
RUN ["/usr/local/bin/orderflow-consumer", "--help"]
ENTRYPOINT ["/usr/local/bin/orderflow-consumer"]

FROM runtime AS provision
LABEL org.opencontainers.image.title=orderflow-provision \
      org.opencontainers.image.description="Makes and checks what an OrderFlow stands on: schemas, bucket, topics"
COPY --from=build-provision /out/orderflow-provision /usr/local/bin/
RUN ["/usr/local/bin/orderflow-provision", "--help"]
ENTRYPOINT ["/usr/local/bin/orderflow-provision"]

FROM runtime AS operator
LABEL org.opencontainers.image.title=orderflow-operator \
      org.opencontainers.image.description="Makes and keeps a whole pipeline from one OrderFlow resource"
COPY --from=build-operator /out/orderflow-operator /usr/local/bin/
RUN ["/usr/local/bin/orderflow-operator", "--help"]
ENTRYPOINT ["/usr/local/bin/orderflow-operator"]
CMD ["run"]
