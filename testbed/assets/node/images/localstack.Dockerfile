# Replaces docker.io/localstack/localstack: the same user (root), port and variables.
ARG BASE
FROM ${BASE}
COPY packages /opt/localstack
ENV PYTHONPATH=/opt/localstack \
    GATEWAY_LISTEN=0.0.0.0:4566 \
    SKIP_SSL_CERT_DOWNLOAD=1 \
    DNS_ADDRESS=0
RUN mkdir -p /var/lib/localstack /etc/localstack
EXPOSE 4566
ENTRYPOINT ["python3", "-m", "localstack.runtime.main"]
