# syntax=docker/dockerfile:1@sha256:ecfaec9ed6d810b56388c508f4121597bfbba70d41a6dfeee4d8cad5f295fc32
# The images: one program each on a base without a shell. The build context is a folder with compiled programs, not the
# checkout: Dockerfile.build compiles them in a container (`make images` does both), scripts/programs on this machine.
#
# RUNTIME_IMAGE must not be an older Debian than the one that compiled the programs: they link its glibc and OpenSSL.
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot@sha256:9dac0a79194e45a7da0158a9c6da57b217585af0786db3845d1f0ec1a0dd182f

FROM ${RUNTIME_IMAGE} AS runtime
ARG VERSION=dev
LABEL org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.licenses=Apache-2.0
# distroless/cc has glibc, libgcc and OpenSSL, but not the zlib that librdkafka links. /usr/lib is on the loader's own
# search path on every architecture, so this needs no ldconfig in an image that has none.
COPY libz.so.1 /usr/lib/
# OpenSSL's default folder of public authorities does not exist in the base.
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
# As a number, because Kubernetes cannot verify that a user given by name is not root.
USER 65532:65532

# In each stage `--help` checks that the loader finds every library, here rather than on a cluster. There is no shell.
FROM runtime AS producer
LABEL org.opencontainers.image.title=orderflow-producer \
      org.opencontainers.image.description="REST API, shards, relay, receipts, feed and dashboard of OrderFlow"
COPY orderflow-producer /usr/local/bin/
RUN ["/usr/local/bin/orderflow-producer", "--help"]
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/orderflow-producer"]

FROM runtime AS consumer
LABEL org.opencontainers.image.title=orderflow-consumer \
      org.opencontainers.image.description="Turns each OrderFlow event into one notification, through Kafka alone"
COPY orderflow-consumer /usr/local/bin/
RUN ["/usr/local/bin/orderflow-consumer", "--help"]
ENTRYPOINT ["/usr/local/bin/orderflow-consumer"]

FROM runtime AS provision
LABEL org.opencontainers.image.title=orderflow-provision \
      org.opencontainers.image.description="Makes and checks the schemas, the bucket and the topics of an OrderFlow"
COPY orderflow-provision /usr/local/bin/
RUN ["/usr/local/bin/orderflow-provision", "--help"]
ENTRYPOINT ["/usr/local/bin/orderflow-provision"]

FROM runtime AS operator
LABEL org.opencontainers.image.title=orderflow-operator \
      org.opencontainers.image.description="Makes and keeps a whole pipeline from one OrderFlow resource"
COPY orderflow-operator /usr/local/bin/
RUN ["/usr/local/bin/orderflow-operator", "--help"]
ENTRYPOINT ["/usr/local/bin/orderflow-operator"]
CMD ["run"]
