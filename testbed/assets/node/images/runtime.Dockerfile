# Replaces gcr.io/distroless/cc: the libraries that a program links and the authorities that it trusts, no shell.
ARG BASE
FROM ${BASE} AS base
RUN mkdir -p /runtime/tmp /runtime/etc && chmod 1777 /runtime/tmp \
    && cp --parents -L /usr/lib*/ld-linux-*.so.* /etc/nsswitch.conf /etc/passwd /etc/group /etc/ssl/certs/ca-certificates.crt /runtime \
    && for library in libc libm libdl libpthread librt libresolv libgcc_s libssl libcrypto libnss_dns libnss_files; do \
        cp --parents -L /usr/lib/*-linux-gnu*/$library.so.* /runtime || exit; \
    done \
    && ln -s usr/lib /runtime/lib && ln -s usr/lib64 /runtime/lib64

FROM scratch
COPY --from=base /runtime /
