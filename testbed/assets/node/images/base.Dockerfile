# What every image of the node stands on: this machine's own Debian or Ubuntu, so that programs that were compiled here run.
FROM scratch
ARG ROOT_CHECKSUM
LABEL dev.orderflow.checksum=${ROOT_CHECKSUM}
COPY root /
# The official image's user, which volumes are made for.
RUN groupmod --gid 999 postgres && usermod --uid 999 --home /var/lib/postgresql postgres
