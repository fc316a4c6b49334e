# The base of all images of the node: this machine's own Debian or Ubuntu, so that programs that were compiled here run.
FROM scratch
ARG ROOT_CHECKSUM
LABEL dev.orderflow.checksum=${ROOT_CHECKSUM}
COPY root /
# The official image's user, which owns the volumes.
RUN groupmod --gid 999 postgres && usermod --uid 999 --home /var/lib/postgresql postgres
